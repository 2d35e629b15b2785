//! `meshwork whoami`: the identities of this data folder, and until when they may act.

use meshwork_identity::{NodeId, fingerprint};
use serde::Serialize;

use super::Context;
use super::error::CliError;
use crate::config::Config;
use crate::home::{Home, HomeError, Who};

/// An identity of the folder.
#[derive(Debug, Serialize)]
struct Identity {
    id: NodeId,
    expires: Option<String>,
}

pub(super) fn whoami(cx: &Context) -> Result<(), CliError> {
    let mesh = cx.home.mesh()?;
    let (user, node) = (
        identity(&cx.home, Who::User)?,
        identity(&cx.home, Who::Node)?,
    );
    let config: Config = cx.home.read_toml("config.toml")?.unwrap_or_default();
    // What a running node does may have been said on its command line.
    let roles = match cx.home.running()? {
        Some(run) => run.roles,
        None => config.roles.unwrap_or(mesh.roles),
    };
    let roles: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    let name = config.name.unwrap_or(mesh.name);
    let id = match (&user, &node) {
        (Some(who), _) | (None, Some(who)) => who.id,
        (None, None) => return Err(HomeError::NoUser(cx.home.root().to_owned()).into()),
    };
    let value = serde_json::json!({
        "user": user, "node": node, "name": name, "roles": roles,
        "authority": mesh.authority, "fingerprint": fingerprint(&mesh.authority),
    });
    let text = |who: &Option<Identity>| match who {
        Some(who) => who.id.to_string(),
        None => "none".to_owned(),
    };
    let until = |who: &Option<Identity>| match who.as_ref().and_then(|who| who.expires.clone()) {
        Some(expires) => expires,
        None => "no token".to_owned(),
    };
    let mut facts = vec![
        ("mesh", fingerprint(&mesh.authority)),
        ("user", text(&user)),
    ];
    if user.is_some() {
        facts.push(("  until", until(&user)));
    }
    facts.push(("node", text(&node)));
    if node.is_some() {
        let roles = if roles.is_empty() {
            "manager, and agent where a container backend answers".to_owned()
        } else {
            roles.join(", ")
        };
        facts.extend([
            ("  until", until(&node)),
            ("  name", name),
            ("  roles", roles),
        ]);
    }
    cx.out.facts(&value, &id.to_string(), &facts)
}

/// An identity and until when its token holds, if it is here.
fn identity(home: &Home, who: Who) -> Result<Option<Identity>, HomeError> {
    if !home.key_path(who).exists() {
        return Ok(None);
    }
    Ok(Some(Identity {
        id: home.identity(who)?.node_id(),
        expires: home
            .token(who)?
            .map(|token| token.claims().expires.to_string()),
    }))
}
