//! `meshwork rpc`: what nodes serve, and calls of it from a shell.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream};
use meshwork_identity::NodeId;
use meshwork_mesh::ServiceOptions;
use meshwork_proto::mesh::{Find, FindNodes, ListMethods};
use meshwork_proto::rpc::{Codec, Kind, MethodView, RpcError};
use meshwork_proto::service::{self, Access, CallOptions, Caller, ItemStream, MethodInfo, RawCall};
use serde::Serialize;
use serde_json::Value;

use super::client::Client;
use super::error::{CliError, Code};
use super::out::Row;
use super::values::duration;
use crate::ambient::random;

/// Time for the questions around a call.
const ASK: Duration = Duration::from_secs(10);
/// Most nodes that are looked through for a name.
const MAX_NODES: u32 = 1024;
/// In place of a node: the one that `--server` names.
const HERE: &str = ".";
/// In place of a node: any that announces the service.
const ANY: &str = "any";

#[derive(Debug, Subcommand)]
pub(super) enum RpcCommand {
    /// List the methods that a node serves
    Ls(LsArgs),
    /// Call a method with JSON
    Call(CallArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Name, id or prefix of the id; `.` is the called node
    #[arg(default_value = HERE)]
    node: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshwork rpc call . mesh/ping\n  meshwork rpc call lab-1 store/get --json '{\"key\": \"a\"}'\n  \
                  seq 1 1000 | meshwork rpc call any math/sum --json -"
)]
pub(super) struct CallArgs {
    /// Name, id or prefix of the id; `.` is the called node, `any` is any that announces the service
    node: String,
    /// What to call
    #[arg(value_name = "SERVICE/METHOD")]
    method: String,
    /// The request; several for a method that takes a stream; `-` reads one a line
    #[arg(long, value_name = "JSON", default_values = ["null"])]
    json: Vec<String>,
    /// Time for the call, or of a stream, until it is accepted
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    deadline: Duration,
}

pub(super) async fn rpc(client: &Client, command: RpcCommand) -> Result<(), CliError> {
    match command {
        RpcCommand::Ls(args) => {
            let node = resolve(client, &args.node).await?;
            let methods = methods(client, node).await?;
            let rows: Vec<MethodRow> = methods.into_iter().map(MethodRow).collect();
            client.out.list(&rows)
        }
        RpcCommand::Call(args) => call(client, &args).await,
    }
}

async fn call(client: &Client, args: &CallArgs) -> Result<(), CliError> {
    let (service, name) = args.method.split_once('/').ok_or_else(|| {
        CliError::new(Code::VALUE, format!("`{}` is no method", args.method))
            .fix("write SERVICE/METHOD; meshwork rpc ls shows them")
    })?;
    let node = match args.node.as_str() {
        ANY => None,
        node => Some(resolve(client, node).await?),
    };
    let like = match node {
        Some(node) => node,
        None => some_node(client, service).await?,
    };
    let method = find(&methods(client, like).await?, service, name)?;
    let requests = requests(&args.json)?;
    let mut options = CallOptions::within(args.deadline);
    if method.idempotent {
        options.idempotency_key = Some(random());
    }
    let call = RawCall {
        method,
        codec: Codec::Json,
        body: requests.first().cloned().unwrap_or_default(),
        options,
    };
    if !method.kind.takes_stream() && requests.len() != 1 {
        let text = format!(
            "`{}` takes one request, and {} are given",
            args.method,
            requests.len()
        );
        return Err(CliError::new(Code::VALUE, text).fix("--json once"));
    }
    match answers(client, node, like, call, requests).await? {
        Answers::One(answer) => client.out.data(&format!("{:#}\n", value(&answer)?)),
        Answers::Many(mut items) => {
            while let Some(item) = items.next().await {
                client.out.data(&format!("{}\n", value(&item?)?))?;
            }
            Ok(())
        }
    }
}

/// What comes back.
enum Answers {
    One(Bytes),
    Many(ItemStream<Bytes>),
}

/// Makes the call at `node`, or for a unary one at any that announces the service.
async fn answers(
    client: &Client,
    node: Option<NodeId>,
    like: NodeId,
    call: RawCall,
    requests: Vec<Bytes>,
) -> Result<Answers, RpcError> {
    let mesh = client.mesh();
    match call.method.kind {
        Kind::Unary if node.is_none() => {
            let mut options = ServiceOptions::within(call.options.deadline);
            options.call = call.options;
            let answer = mesh.call_service_raw(call, &options).await;
            answer.map(Answers::One)
        }
        Kind::Unary => mesh.call_raw(like, call).await.map(Answers::One),
        Kind::ServerStream => mesh.stream_raw(like, call).await.map(Answers::Many),
        Kind::ClientStream | Kind::Bidi => {
            let items = stream::iter(requests.into_iter().map(Ok));
            let answers = mesh.duplex_raw(like, call, Box::pin(items)).await;
            answers.map(Answers::Many)
        }
    }
}

/// The requests, each checked to be JSON before anything is sent.
fn requests(given: &[String]) -> Result<Vec<Bytes>, CliError> {
    let mut requests = Vec::new();
    for text in given {
        if text == "-" {
            for line in std::io::stdin().lock().lines() {
                let line = line?;
                if !line.trim().is_empty() {
                    requests.push(checked(&line)?);
                }
            }
        } else {
            requests.push(checked(text)?);
        }
    }
    Ok(requests)
}

fn checked(text: &str) -> Result<Bytes, CliError> {
    let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_str(text);
    match parsed {
        Ok(_) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Err(error) => {
            let text = format!("`{text}` is no JSON: {error}");
            Err(CliError::new(Code::VALUE, text).fix("quote texts: --json '\"text\"'"))
        }
    }
}

fn value(answer: &[u8]) -> Result<Value, CliError> {
    serde_json::from_slice(answer).map_err(|error| {
        let text = format!("the answer is no JSON: {error}");
        CliError::from(RpcError::internal(text))
    })
}

/// The node that is meant: the called one, or one that it knows.
async fn resolve(client: &Client, wanted: &str) -> Result<NodeId, CliError> {
    if wanted == HERE {
        return Ok(client.server);
    }
    let known = known(client, String::new()).await?;
    let named = known.iter().filter(|(_, name)| name == wanted);
    let by_id = known.iter().filter(|(node, _)| node.matches_prefix(wanted));
    let hits: BTreeSet<NodeId> = named.chain(by_id).map(|(node, _)| *node).collect();
    match (hits.first(), hits.len()) {
        (Some(node), 1) => Ok(*node),
        (None, _) => {
            let text = format!("no node `{wanted}` is known to the called one");
            Err(CliError::new(Code::NOT_FOUND, text).fix("meshwork node ls"))
        }
        (Some(_), count) => {
            let text = format!("`{wanted}` may be any of {count} nodes");
            Err(CliError::new(Code::VALUE, text)
                .fix("write more of the id; meshwork node ls -o wide"))
        }
    }
}

/// Some node that announces a service. All of them are known here from then on.
async fn some_node(client: &Client, service: &str) -> Result<NodeId, CliError> {
    if service.contains(['"', '\\']) {
        return Err(CliError::new(
            Code::VALUE,
            format!("`{service}` is no service"),
        ));
    }
    let known = known(client, format!("services has \"{service}\"")).await?;
    known.first().map(|(node, _)| *node).ok_or_else(|| {
        let text = format!("no node announces the service `{service}`");
        CliError::new(Code::NOT_FOUND, text).fix("meshwork node ls -o json shows who serves what")
    })
}

/// The nodes that the called one knows and that satisfy the query, with their names. They can be called
/// from then on.
async fn known(client: &Client, query: String) -> Result<Vec<(NodeId, String)>, CliError> {
    let find = Find {
        query,
        limit: MAX_NODES,
        tenants: BTreeSet::new(),
        region: None,
    };
    let found = client.call::<FindNodes>(&find).await?;
    let named = found.nodes.iter();
    let named = named.filter_map(|node| Some((node.node(), node.open().ok()?.name)));
    let named = named.collect();
    client.mesh().learn(found.nodes);
    Ok(named)
}

async fn methods(client: &Client, node: NodeId) -> Result<Vec<MethodView>, CliError> {
    let options = CallOptions::within(ASK);
    Ok(service::call::<ListMethods>(client.mesh(), node, &(), options).await?)
}

/// The method of this name, as its node declares it.
fn find(methods: &[MethodView], service: &str, name: &str) -> Result<MethodInfo, CliError> {
    let found = methods
        .iter()
        .find(|m| m.service == service && m.method == name);
    let found = found.ok_or_else(|| {
        let text = format!("the node does not serve `{service}/{name}`");
        CliError::new(Code::NOT_FOUND, text).fix("meshwork rpc ls NODE")
    })?;
    Ok(MethodInfo {
        // Names of methods live as long as the program, and this one calls a single method.
        service: Box::leak(found.service.clone().into_boxed_str()),
        name: Box::leak(found.method.clone().into_boxed_str()),
        kind: found.kind,
        idempotent: found.idempotent,
        // The callee decides.
        access: Access::Call,
    })
}

/// A method in a list.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct MethodRow(MethodView);

impl Row for MethodRow {
    fn head(_wide: bool) -> Vec<&'static str> {
        vec!["METHOD", "KIND", "ACCESS", "REPEATABLE"]
    }

    fn cells(&self, _wide: bool) -> Vec<String> {
        vec![
            self.id(),
            self.0.kind.name().to_owned(),
            self.0.access.clone(),
            if self.0.idempotent { "yes" } else { "no" }.to_owned(),
        ]
    }

    fn id(&self) -> String {
        format!("{}/{}", self.0.service, self.0.method)
    }
}
