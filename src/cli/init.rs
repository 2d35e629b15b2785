//! `meshwork init`: makes a mesh.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use meshwork_identity::{
    Identity, Limits, NodeId, Psk, Resource, Scopes, SecretFile, Token, TokenRequest, fingerprint,
};

use super::Context;
use super::error::CliError;
use super::out::Out;
use crate::ambient::{now, random};
use crate::config::node_name;
use crate::home::{Home, HomeError, MeshFile, Who};

/// How long the tokens hold that the authority gives to its own machine. [`renew`] replaces them
/// after half of it, as long as the authority's key is here.
const OWN_TOKEN_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// Delegations that they allow: to a manager, its agents, and one more.
const OWN_TOKEN_DEPTH: u8 = 3;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Name of this machine's node [default: the host's name]
    #[arg(long, value_parser = node_name)]
    name: Option<String>,
}

pub(super) fn init(cx: &Context, args: &InitArgs) -> Result<(), CliError> {
    let authority = make(&cx.home, args.name.clone())?;
    report(&cx.home, cx.out, authority)?;
    cx.out.remark("next: meshwork up");
    if cx.out.is_machine() {
        let mesh = serde_json::json!({
            "authority": authority,
            "fingerprint": fingerprint(&authority),
            "node": cx.home.identity(Who::Node)?.node_id(),
            "user": cx.home.identity(Who::User)?.node_id(),
        });
        return cx.out.value(&mesh);
    }
    if cx.out.quiet {
        cx.out.data(&format!("{authority}\n"))
    } else {
        Ok(())
    }
}

/// Says what was made.
pub(super) fn report(home: &Home, out: Out, authority: NodeId) -> Result<(), CliError> {
    let user = home.identity(Who::User)?.node_id();
    out.ok(format_args!(
        "mesh      {} ({})",
        fingerprint(&authority),
        authority.short()
    ));
    out.ok(format_args!(
        "authority {} (0600: whoever has it owns the mesh; it may be kept offline)",
        home.path("authority.key").display()
    ));
    out.ok(format_args!(
        "you       {}… may do everything here",
        user.short()
    ));
    Ok(())
}

/// Makes a mesh in `home`. `mesh.toml` is written last: a half-made one is none, and is finished
/// by the next try.
pub(super) fn make(home: &Home, name: Option<String>) -> Result<NodeId, CliError> {
    if home.has_mesh() {
        return Err(HomeError::Exists(home.root().to_owned()).into());
    }
    let path = home.path("authority.key");
    let authority =
        meshwork_identity::load_or_create_identity(&path, &random()).map_err(HomeError::from)?;
    if !SecretFile::new(&home.path("psk"))
        .exists()
        .map_err(HomeError::from)?
    {
        home.write_psk(&Psk::from_bytes(random()))?;
    }
    for who in [Who::Node, Who::User] {
        let identity = home.identity_or_new(who, &random())?;
        home.write_token(who, &own_token(&authority, identity.node_id())?)?;
    }
    let mesh = MeshFile {
        authority: authority.node_id(),
        name: name.unwrap_or_else(host_name),
        roles: BTreeSet::new(),
    };
    home.write_mesh(&mesh)?;
    Ok(authority.node_id())
}

/// Replaces the authority's own tokens on its machine before they end.
pub(super) fn renew(home: &Home) -> Result<(), CliError> {
    let Some(authority) = home.authority()? else {
        return Ok(());
    };
    for who in [Who::Node, Who::User] {
        let stale = home.token(who)?.is_some_and(|token| {
            let claims = token.claims();
            claims.issuer == authority.node_id()
                && claims.expires.duration_since(now()) < OWN_TOKEN_LIFE / 2
        });
        if stale {
            home.write_token(who, &own_token(&authority, home.identity(who)?.node_id())?)?;
        }
    }
    Ok(())
}

fn own_token(authority: &Identity, subject: NodeId) -> Result<Token, CliError> {
    let request = TokenRequest {
        subject,
        scopes: Scopes::all(),
        resource: Resource::any(),
        not_before: None,
        ttl: OWN_TOKEN_LIFE,
        depth: OWN_TOKEN_DEPTH,
        limits: Limits::none(),
    };
    Ok(Token::issue_root(authority, request, now(), random())?)
}

/// The host's name as a node's name: its first label, with what is not allowed made `-`.
pub(super) fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label = host
        .trim()
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let name: String = label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(meshwork_proto::limits::MAX_NAME)
        .collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        "node".to_owned()
    } else {
        name.to_owned()
    }
}
