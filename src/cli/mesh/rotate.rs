//! `meshwork mesh rotate-psk`: a new pre-shared key for every node, without a gap.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use meshwork_identity::{NodeId, Psk, Timestamp};
use meshwork_proto::mesh::RotatePsk;
use meshwork_proto::psk::{MAX_OVERLAP, PskRotation, SignedPskRotation};
use meshwork_proto::service::{self, CallOptions};

use super::{AT_ONCE, nodes};
use crate::ambient::{now, random};
use crate::cli::client::{self, Client};
use crate::cli::error::{CliError, Code};
use crate::cli::out::{counted, span};
use crate::cli::{Context, values};
use crate::home::{Home, HomeError, Who};

/// Time between the order and the first dial with the new key: for the news to reach everybody. A
/// tenth of the overlap, if that is less.
const NOTICE: Duration = Duration::from_mins(1);
/// Shorter overlaps cut off nodes that run and are well: the news takes seconds to reach everybody.
const MIN_OVERLAP: Duration = Duration::from_secs(10);
/// Time for one node to be reached and to answer.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(in crate::cli) struct RotateArgs {
    /// How long the old key is still answered to: whoever is away for longer must be invited again
    #[arg(long, value_parser = overlap, default_value = "24h", value_name = "DURATION")]
    overlap: Duration,
}

fn overlap(text: &str) -> Result<Duration, String> {
    let overlap = values::duration(text)?;
    if overlap > MAX_OVERLAP {
        let most = span(MAX_OVERLAP);
        return Err(format!("the old key may be answered to for {most} at most"));
    }
    if overlap < MIN_OVERLAP {
        return Err(format!(
            "within {text} not every node hears of the new key, and who does not is cut off: give {} or more",
            span(MIN_OVERLAP)
        ));
    }
    Ok(overlap)
}

pub(super) fn rotate(cx: &Context, args: &RotateArgs) -> Result<(), CliError> {
    let (body, signed) = sign(&cx.home, args.overlap)?;
    client::with(cx, async |c| spread(c, cx, &body, signed).await)
}

/// The rotation: by the authority where its key is, else by the user as an admin.
fn sign(home: &Home, overlap: Duration) -> Result<(PskRotation, SignedPskRotation), CliError> {
    let made = now();
    let epoch = made.as_millis() / 1000;
    let made = Timestamp::from_secs(epoch);
    let body = PskRotation {
        epoch,
        psk: Psk::from_bytes(random()),
        from: made.saturating_add(NOTICE.min(overlap / 10)),
        until: made.saturating_add(overlap),
    };
    let signed = if let Some(authority) = home.authority()? {
        SignedPskRotation::by_authority(&authority, &body)
    } else {
        let token = home.token(Who::User)?;
        let token = token.ok_or_else(|| HomeError::NoUser(home.root().to_owned()))?;
        SignedPskRotation::by_admin(&home.identity(Who::User)?, token, &body)
    };
    let signed = signed.map_err(|error| CliError::new(Code::INTERNAL, error))?;
    Ok((body, signed))
}

/// Hands it to the called node, which spreads it, and then to every node it knows, to hear who has
/// it.
async fn spread(
    client: &Client,
    cx: &Context,
    body: &PskRotation,
    signed: SignedPskRotation,
) -> Result<(), CliError> {
    client.call::<RotatePsk>(&signed).await?;
    // From here on the called node answers to both keys, and this folder's commands dial it.
    cx.home.write_psk(&body.psk)?;
    let (known, total) = nodes(client).await?;
    let answers = stream::iter(known.iter().map(|(node, _)| async {
        let options = CallOptions::within(ANSWER);
        let answer = service::call::<RotatePsk>(client.mesh(), *node, &signed, options).await;
        (*node, answer.is_ok())
    }));
    let answers: Vec<(NodeId, bool)> = answers.buffer_unordered(AT_ONCE).collect().await;
    let confirmed = answers.iter().filter(|(_, ok)| *ok).count();
    report(client, body, &known, &answers, confirmed, total)
}

fn report(
    client: &Client,
    body: &PskRotation,
    known: &[(NodeId, String)],
    answers: &[(NodeId, bool)],
    confirmed: usize,
    total: u64,
) -> Result<(), CliError> {
    let silent: Vec<&NodeId> = answers
        .iter()
        .filter(|(_, ok)| !ok)
        .map(|(node, _)| node)
        .collect();
    let (from, until) = (body.from.to_string(), body.until.to_string());
    let value = serde_json::json!({
        "epoch": body.epoch, "from": from, "until": until,
        "nodes": total, "confirmed": confirmed, "silent": silent,
    });
    let text = format!(
        "{confirmed} of {} have the new key; used from {from}, the old one is answered to until {until}",
        counted(usize::try_from(total).unwrap_or(usize::MAX), "node")
    );
    client.out.done(&value, text)?;
    if !silent.is_empty() {
        let name = |node: &NodeId| {
            known
                .iter()
                .find(|(id, _)| id == node)
                .map(|(_, n)| n.clone())
        };
        let names: Vec<String> = silent.iter().filter_map(|node| name(node)).collect();
        client.out.warn(format_args!(
            "not heard from: {}. Each learns it from its neighbours, if it comes back before the old key ends",
            crate::cli::out::clean(&names.join(", "))
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_lasts_long_enough_and_not_for_ever() {
        assert_eq!(overlap("10s"), Ok(MIN_OVERLAP));
        for (text, word) in [
            ("9s", "or more"),
            ("9999d", "at most"),
            ("soon", "no duration"),
        ] {
            let error = overlap(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
