//! `meshwork token`: issue, look at, check, use and revoke permission tokens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use meshwork_identity::{
    Grant, Limits, NodeId, NodeTags, Resource, Revocation, RevocationNotice, Revocations, Revoked,
    Scopes, Timestamp, Token, TokenId, TokenRequest, VerifyContext,
};
use meshwork_proto::ByteSize;
use meshwork_proto::mesh::{Revoke, RevokeTokens};
use serde::Serialize;

use super::client::{self, Client};
use super::error::{CliError, Code};
use super::join::CLOCK_TOLERANCE;
use super::out::{counted, exact_size, span};
use super::{Context, values};
use crate::ambient::{now, random};
use crate::home::{Home, HomeError, Who};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Pass on a part of what you may do
    Issue(IssueArgs),
    /// Show what a token says
    Show(TokenArg),
    /// Check a token against this mesh, offline
    Verify(TokenArg),
    /// Act with this token from now on
    Use(TokenArg),
    /// Revoke a token, or everything that a node or user was given
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// Who may act: the whole id of a node or user
    #[arg(long, value_name = "NODE")]
    to: NodeId,
    /// Kinds of action: join, announce, call, publish, subscribe, delegate, admin
    #[arg(long = "scope", value_name = "SCOPES", default_value = "call")]
    scopes: Scopes,
    /// On what: service/method or channel pattern, with @NODE on that node only
    #[arg(long, default_value = "*")]
    resource: Resource,
    /// For how long
    #[arg(long, value_parser = values::duration, default_value = "8h")]
    ttl: Duration,
    /// How many more times it may be passed on
    #[arg(long, default_value_t = 0)]
    depth: u8,
    #[command(flatten)]
    limits: LimitArgs,
    /// Sign with the mesh authority's key instead of passing on your own token
    #[arg(long)]
    root: bool,
}

/// Limits of a token.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// At most so many GPUs on a node
    #[arg(long)]
    gpus: Option<u32>,
    /// At most so many hardware threads on a node
    #[arg(long, value_parser = values::cpu_millis)]
    cpu: Option<u64>,
    /// At most so much memory on a node
    #[arg(long, value_parser = values::memory)]
    mem: Option<ByteSize>,
    /// At most so many kernels on a node
    #[arg(long)]
    kernels: Option<u32>,
    /// Only nodes that carry this tag (repeat for several)
    #[arg(long = "tag")]
    tags: Vec<String>,
}

impl LimitArgs {
    /// The limits, or what is wrong with the tags.
    pub(super) fn limits(&self) -> Result<Limits, CliError> {
        Ok(Limits {
            gpus: self.gpus,
            cpu_millis: self.cpu,
            mem_bytes: self.mem.map(|m| m.0),
            kernels: self.kernels,
            node_tags: NodeTags::new(self.tags.iter().cloned())
                .map_err(|e| CliError::new(Code::VALUE, e))?,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct TokenArg {
    /// The token, or a file that holds it
    token: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct RevokeArgs {
    /// The token, a file that holds it, or a token's id
    token: Option<String>,
    /// A node or user
    #[arg(long)]
    node: Option<NodeId>,
}

pub(super) fn token(cx: &Context, command: TokenCommand) -> Result<(), CliError> {
    match command {
        TokenCommand::Issue(args) => issue(cx, args),
        TokenCommand::Show(arg) => show(cx, &read(&arg.token)?),
        TokenCommand::Verify(arg) => verify(cx, &read(&arg.token)?),
        TokenCommand::Use(arg) => adopt(cx, &read(&arg.token)?),
        TokenCommand::Revoke(args) => {
            cx.home.mesh()?;
            let (what, revocation) = revocation(&cx.home, &args)?;
            client::with(cx, async |c| revoke(c, what, revocation).await)
        }
    }
}

/// A token from its text or from a file.
fn read(text: &str) -> Result<Token, CliError> {
    if text.starts_with("mwt") && !Path::new(text).exists() {
        return Ok(text.parse()?);
    }
    let path = Path::new(text);
    let content = fs::read_to_string(path).map_err(|e| CliError::file(path, &e))?;
    Ok(content.trim().parse()?)
}

fn issue(cx: &Context, args: IssueArgs) -> Result<(), CliError> {
    let request = TokenRequest {
        subject: args.to,
        scopes: args.scopes,
        resource: args.resource,
        not_before: None,
        ttl: args.ttl,
        depth: args.depth,
        limits: args.limits.limits()?,
    };
    let token = if args.root {
        let authority = cx.home.authority()?.ok_or_else(|| {
            CliError::new(
                Code::KEY_FILE,
                "the mesh authority's key is not on this machine",
            )
            .fix("issue where `meshwork init` ran, or leave out --root")
        })?;
        Token::issue_root(&authority, request, now(), random())?
    } else {
        let holder = cx.home.identity(Who::User)?;
        let own = own_token(&cx.home)?;
        let left = own.claims().depth;
        if (1..=args.depth).contains(&left) {
            let text = format!(
                "your token may be passed on {}, so --depth {} is too deep",
                counted(left.into(), "more time"),
                args.depth
            );
            return Err(
                CliError::new(Code::TOKEN, text).fix(format_args!("--depth {} or less", left - 1))
            );
        }
        own.delegate(&holder, request, now(), random())?
    };
    if cx.out.is_machine() {
        return cx.out.value(
            &serde_json::json!({ "token": token.to_string(), "id": token.id().to_string() }),
        );
    }
    cx.out.data(&format!("{token}\n"))
}

fn own_token(home: &Home) -> Result<Token, CliError> {
    home.token(Who::User)?
        .ok_or_else(|| HomeError::NoUser(home.root().to_owned()).into())
}

/// A link of a token, for output.
#[derive(Serialize)]
struct LinkView {
    id: String,
    issuer: NodeId,
    subject: NodeId,
    scopes: String,
    resource: String,
    not_before: String,
    expires: String,
    depth: u8,
    limits: Vec<String>,
}

fn show(cx: &Context, token: &Token) -> Result<(), CliError> {
    let links: Vec<LinkView> = token.links().iter().map(view).collect();
    if cx.out.is_machine() {
        return cx.out.value(&serde_json::json!({ "links": links }));
    }
    if cx.out.quiet {
        return cx.out.data(&format!("{}\n", token.id()));
    }
    for (n, link) in links.iter().enumerate() {
        let who = if n == 0 { "authority" } else { "delegated by" };
        cx.out.facts(
            &(),
            &link.id,
            &[
                (who, link.issuer.to_string()),
                ("  to", link.subject.to_string()),
                ("  may", format!("{} on {}", link.scopes, link.resource)),
                (
                    "  from",
                    format!("{} until {}", link.not_before, link.expires),
                ),
                ("  depth left", link.depth.to_string()),
                (
                    "  limits",
                    if link.limits.is_empty() {
                        "none".into()
                    } else {
                        link.limits.join(", ")
                    },
                ),
                ("  id", link.id.clone()),
            ],
        )?;
    }
    Ok(())
}

/// Thousandths of hardware threads as people write them: `2`, `0.5`.
fn threads(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn view(link: &meshwork_identity::Link) -> LinkView {
    let claims = link.claims();
    let limits = &claims.limits;
    let list = [
        limits.gpus.map(|n| counted(n as usize, "GPU")),
        limits.cpu_millis.map(|n| format!("{} cpu", threads(n))),
        limits
            .mem_bytes
            .map(|n| format!("{} memory", exact_size(n))),
        limits.kernels.map(|n| counted(n as usize, "kernel")),
        (!limits.node_tags.is_empty()).then(|| format!("nodes tagged {}", limits.node_tags)),
    ];
    LinkView {
        id: link.id().to_string(),
        issuer: claims.issuer,
        subject: claims.subject,
        scopes: claims.scopes.to_string(),
        resource: claims.resource.to_string(),
        not_before: claims.not_before.to_string(),
        expires: claims.expires.to_string(),
        depth: claims.depth,
        limits: list.into_iter().flatten().collect(),
    }
}

fn verify(cx: &Context, token: &Token) -> Result<(), CliError> {
    let root = cx.home.mesh()?.authority;
    let now = now();
    let grant = token.verify(&VerifyContext::new(&root, now, &Revocations::new()))?;
    let until = if now < grant.expires {
        grant.expires.to_string()
    } else {
        format!(
            "{} (expired {} ago; still holds, as clocks may differ by {}s)",
            grant.expires,
            span(now.duration_since(grant.expires)),
            CLOCK_TOLERANCE.as_secs()
        )
    };
    let facts = [
        ("holds for", grant.subject.to_string()),
        ("may", format!("{} on {}", grant.scopes, grant.resource)),
        ("until", until),
    ];
    let value = grant_value(&grant);
    cx.out.facts(&value, &grant.subject.to_string(), &facts)?;
    cx.out
        .warn("checked offline: whether it was revoked, only the mesh knows");
    Ok(())
}

/// What a token allows, for programs.
fn grant_value(grant: &Grant) -> serde_json::Value {
    serde_json::json!({
        "subject": grant.subject, "scopes": grant.scopes.to_string(),
        "resource": grant.resource.to_string(), "expires": grant.expires.to_string(),
    })
}

fn adopt(cx: &Context, token: &Token) -> Result<(), CliError> {
    let (root, user) = (
        cx.home.mesh()?.authority,
        cx.home.identity(Who::User)?.node_id(),
    );
    let grant = token.verify(&VerifyContext::new(&root, now(), &Revocations::new()))?;
    if grant.subject != user {
        let (expected, actual) = (grant.subject, user);
        return Err(meshwork_identity::TokenError::WrongSubject { expected, actual }.into());
    }
    cx.home.write_token(Who::User, token)?;
    let text = format!(
        "you may {} on {} until {}",
        grant.scopes, grant.resource, grant.expires
    );
    cx.out.done(&grant_value(&grant), text)
}

/// The signed revocation: by the authority where its key is, else by the user as an admin.
fn revocation(home: &Home, args: &RevokeArgs) -> Result<(Revoked, Revocation), CliError> {
    let (what, keep_until) = match (&args.node, &args.token) {
        (Some(node), _) => (Revoked::Node(*node), Timestamp::MAX),
        (None, Some(text)) => {
            if let Ok(id) = text.parse::<TokenId>() {
                (Revoked::Token(id), Timestamp::MAX)
            } else {
                let token = read(text)?;
                (Revoked::Token(token.id()), token.claims().expires)
            }
        }
        (None, None) => return Err(CliError::new(Code::USAGE, "nothing to revoke was named")),
    };
    let notice = RevocationNotice {
        what,
        issued_at: now(),
        keep_until,
    };
    match home.authority()? {
        Some(authority) => Revocation::by_authority(&authority, &notice),
        None => Revocation::by_admin(&home.identity(Who::User)?, own_token(home)?, &notice),
    }
    .map(|revocation| (what, revocation))
    .map_err(|e| CliError::new(Code::INTERNAL, e))
}

async fn revoke(client: &Client, what: Revoked, revocation: Revocation) -> Result<(), CliError> {
    client
        .call::<RevokeTokens>(&Revoke {
            items: vec![revocation],
        })
        .await?;
    let value = match what {
        Revoked::Token(id) => serde_json::json!({ "token": id.to_string() }),
        Revoked::Node(id) => serde_json::json!({ "node": id }),
    };
    client
        .out
        .done(&value, "revoked; every node learns it from its neighbours")
}
