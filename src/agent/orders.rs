//! What a user signed: whether it holds here and now, and what it says.

use std::time::Duration;

use meshwork_identity::{CLOCK_TOLERANCE, Grant, NodeId, Scope, Timestamp, Warrant};
use meshwork_proto::agent::{CreateKernel, EXEC_ORDER_LIFE, ExecOrder};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::session::SessionOrder;

use crate::kernel::record::Order;
use crate::shared::Shared;

/// Path of the grant that a session's order needs.
const CREATE: &str = "agent/kernel.create";
/// Path of the grant that a command's order needs.
const EXEC: &str = "agent/kernel.exec";

/// An order to make a kernel, and whether it may still be started for the first time.
pub(crate) fn session(shared: &Shared, request: &CreateKernel) -> Result<Order, RpcError> {
    let grant = verify(shared, &request.warrant, Scope::Call, CREATE)?;
    let order: SessionOrder = request.warrant.open().map_err(undecodable)?;
    // One order is one kernel: a manager cannot make several of it.
    if request.index != 0 || order.session.kernel(0) != request.kernel {
        return Err(RpcError::denied("the order is not for this kernel").reason("wrong_kernel"));
    }
    order.spec.check()?;
    let spec = order.spec.kernel;
    let max = shared.config.deadlines.max_stop_grace;
    if spec.stop_grace.is_some_and(|grace| grace > max) {
        let text = format!("stop_grace: at most {} s here", max.as_secs());
        return Err(RpcError::invalid(text).reason("spec"));
    }
    let tags = shared.config.node_tags.iter().map(String::as_str);
    if !grant.limits.allow_node(tags) {
        let text = "the token is for nodes with tags that this one does not carry";
        return Err(RpcError::denied(text).reason("node_tags"));
    }
    Ok(Order {
        kernel: request.kernel,
        session: order.session,
        attempt: request.attempt,
        generation: request.generation,
        owner: grant.subject,
        token: grant.id(),
        limits: grant.limits,
        starts: order.issued_at,
        ends: end_of(order.issued_at, order.valid_for),
        spec,
    })
}

/// Whether a session's order may be started at `now`.
pub(crate) fn check_time(order: &Order, now: Timestamp) -> Result<(), RpcError> {
    in_time(order.starts, order.ends, now)
}

/// An order to run a command, and who signed it. It may be carried out once.
pub(crate) fn exec(
    shared: &Shared,
    warrant: &Warrant,
) -> Result<(ExecOrder, Grant, Timestamp), RpcError> {
    let grant = verify(shared, warrant, Scope::Call, EXEC)?;
    let order: ExecOrder = warrant.open().map_err(undecodable)?;
    if order.command.is_empty() {
        return Err(RpcError::invalid("the command is empty").reason("spec"));
    }
    let odd = |text: &String| text.contains('\0');
    let bad_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if order.command.iter().chain(order.env.values()).any(odd) || order.env.keys().any(bad_name) {
        let text = "arguments and variables must not contain a zero byte, nor names a `=`";
        return Err(RpcError::invalid(text).reason("spec"));
    }
    let ends = end_of(order.issued_at, EXEC_ORDER_LIFE);
    in_time(order.issued_at, ends, shared.clock.now())?;
    Ok((order, grant, ends))
}

/// Whether `grant` makes its holder master of others' kernels on `path`.
pub(crate) fn is_admin(grant: &Grant, path: &str, node: &NodeId, now: Timestamp) -> bool {
    grant
        .check(&grant.subject, Scope::Admin, path, node, now)
        .is_ok()
}

fn verify(shared: &Shared, warrant: &Warrant, scope: Scope, path: &str) -> Result<Grant, RpcError> {
    let grant = shared.trust.verify(warrant)?;
    let signer = warrant.order.signer();
    grant
        .check(&signer, scope, path, &shared.node, shared.clock.now())
        .map_err(|e| RpcError::denied(e.to_string()).reason(e.kind()))?;
    Ok(grant)
}

fn undecodable(error: impl std::fmt::Display) -> RpcError {
    RpcError::invalid(error.to_string()).reason("warrant")
}

/// When an order ends, clocks apart by the tolerance at most.
fn end_of(issued_at: Timestamp, life: Duration) -> Timestamp {
    issued_at
        .saturating_add(life)
        .saturating_add(CLOCK_TOLERANCE)
}

fn in_time(starts: Timestamp, ends: Timestamp, now: Timestamp) -> Result<(), RpcError> {
    if now.saturating_add(CLOCK_TOLERANCE) < starts {
        let text = format!("the order was signed at {starts}, which is in the future");
        return Err(RpcError::new(Status::Denied, text)
            .reason("order_not_yet_valid")
            .fix("set the clocks of both machines"));
    }
    if now >= ends {
        let text = format!("the order could be used until {ends}");
        return Err(RpcError::new(Status::Denied, text).reason("order_expired"));
    }
    Ok(())
}
