//! What surrounds a call: deadlines and traces that nested calls inherit, interceptors, the list of
//! methods.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{NodeId, Scope};
use meshwork_mesh::Mesh;
use meshwork_proto::mesh::ListMethods;
use meshwork_proto::rpc::intercept::{ClientInterceptor, Intercepted, ServerInterceptor, Watch};
use meshwork_proto::rpc::{Codec, Kind, RpcError, Status, TraceContext};
use meshwork_proto::service::{
    CallContext, CallOptions, Caller, MethodInfo, RawCall, Router, call, stream,
};

use crate::cluster::*;
use crate::probe::{self, *};

meshwork_proto::service! {
    "who";
    /// Calls [`Left`] at another node, and says what that had left, in milliseconds.
    unary Nest("nest", Call, true): [u8; 32] => (u64, Option<[u8; 8]>);
    /// The time that is left, in milliseconds, and the trace.
    unary Left("left", Call, true): () => (u64, Option<[u8; 8]>);
}

fn nesting(mesh: &Arc<Mutex<Option<Mesh>>>) -> Router {
    let mesh = mesh.clone();
    Router::new()
        .unary::<Nest, _, _>(move |_, to| {
            let mesh = mesh.lock().unwrap().clone().unwrap();
            async move {
                let to = NodeId::from_bytes(to).unwrap();
                // It would wait for an hour, if it were asked.
                let options = CallOptions::within(Duration::from_hours(1));
                call::<Left>(&mesh, to, &(), options).await
            }
        })
        .unary::<Left, _, _>(|cx: CallContext, ()| async move {
            let left = cx.deadline.unwrap_or(Duration::MAX).as_millis();
            let left = u64::try_from(left).unwrap_or(u64::MAX);
            Ok((left, cx.trace.map(|trace| trace.span_id)))
        })
}

#[tokio::test]
async fn nested_calls_inherit_the_deadline_and_the_trace() {
    let cluster = Cluster::new();
    let slot = Arc::<Mutex<Option<Mesh>>>::default();
    let client = cluster.node(1, Router::new());
    let middle = cluster.node(2, nesting(&slot));
    let last = cluster.node(3, nesting(&slot));
    *slot.lock().unwrap() = Some(middle.clone());
    connect(&client, &middle).await;
    connect(&middle, &last).await;
    let trace = TraceContext {
        trace_id: [1; 16],
        span_id: [3; 8],
        flags: 0,
    };
    let options = CallOptions {
        trace: Some(trace),
        ..CallOptions::within(Duration::from_secs(15))
    };
    // To another node, to the node itself, and from a node that calls itself.
    for (from, to) in [(&client, &last), (&client, &middle), (&middle, &last)] {
        let request = *to.node_id().as_bytes();
        let (left, span) = call::<Nest>(from, middle.node_id(), &request, options)
            .await
            .unwrap();
        assert!(left <= 15_000, "{left} ms are more than the caller had");
        assert_eq!(span, Some([3; 8]));
    }
    // Beyond a handler nothing is inherited.
    let alone = CallOptions::within(Duration::from_hours(1));
    let (left, _) = call::<Left>(&middle, last.node_id(), &(), alone)
        .await
        .unwrap();
    assert!(left > 3_000_000);
    *slot.lock().unwrap() = None;
    stop(&[&client, &middle, &last]).await;
}

/// Writes down what it sees.
#[derive(Default)]
struct Diary {
    lines: Arc<Mutex<Vec<String>>>,
    refuses: Option<NodeId>,
}

struct Page(Arc<Mutex<Vec<String>>>, Option<String>);

impl Watch for Page {
    fn ended(mut self: Box<Self>, outcome: Result<(), &RpcError>) {
        let path = self.1.take().unwrap();
        let outcome = outcome.map_or_else(|error| error.status.to_string(), |()| "ok".into());
        self.0.lock().unwrap().push(format!("{path} {outcome}"));
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(path) = &self.1 {
            self.0.lock().unwrap().push(format!("{path} cancelled"));
        }
    }
}

impl Diary {
    fn page(&self, method: &MethodInfo) -> Box<dyn Watch> {
        Box::new(Page(self.lines.clone(), Some(method.path())))
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

impl ServerInterceptor for Diary {
    fn begin(&self, method: &MethodInfo, cx: &mut CallContext) -> Result<Box<dyn Watch>, RpcError> {
        if self.refuses == Some(cx.peer) {
            return Err(RpcError::denied("not you"));
        }
        Ok(self.page(method))
    }
}

impl ClientInterceptor for Diary {
    fn begin(&self, to: &NodeId, call: &mut RawCall) -> Result<Box<dyn Watch>, RpcError> {
        if self.refuses == Some(*to) {
            return Err(RpcError::denied("not there"));
        }
        call.options.trace = Some(TraceContext {
            trace_id: [8; 16],
            span_id: [9; 8],
            flags: 0,
        });
        Ok(self.page(&call.method))
    }
}

#[tokio::test]
async fn interceptors_see_change_and_refuse_calls() {
    let cluster = Cluster::new();
    let counters = Arc::<Counters>::default();
    let served = Arc::new(Diary {
        refuses: Some(crate::common::node_id(3)),
        ..Diary::default()
    });
    let slot = Arc::default();
    let router = probe::counted(&counters).merge(nesting(&slot));
    let interceptor: Arc<dyn ServerInterceptor> = served.clone();
    let (client, server) = cluster.pair(router.intercepted(&interceptor)).await;
    let to = server.node_id();
    let made = Arc::new(Diary::default());
    let watched = Intercepted::new(Arc::new(client.clone()), made.clone());
    call::<Echo>(&watched, to, &Bytes::new(), patiently())
        .await
        .unwrap();
    let (_, span) = call::<Left>(&watched, to, &(), patiently()).await.unwrap();
    assert_eq!(span, Some([9; 8]), "the caller's interceptor has set it");
    call::<Panic>(&watched, to, &(), patiently())
        .await
        .unwrap_err();
    let items = stream::<Count>(&watched, to, &3, patiently())
        .await
        .unwrap();
    assert_eq!(futures_util::StreamExt::count(items).await, 3);
    let quiet = stream::<Quiet>(&watched, to, &(), patiently())
        .await
        .unwrap();
    drop(quiet);
    until("the handler is dropped", || counters.dropped() == 1).await;
    let both = ["probe/echo ok", "who/left ok"];
    assert_eq!(
        made.take(),
        [
            &both[..],
            &[
                "probe/panic internal",
                "probe/count ok",
                "probe/quiet cancelled"
            ]
        ]
        .concat()
    );
    // A handler that panics leaves its watch unheard.
    until("all have ended", || served.lines.lock().unwrap().len() == 5).await;
    assert_eq!(
        served.take(),
        [
            &both[..],
            &[
                "probe/panic cancelled",
                "probe/count ok",
                "probe/quiet cancelled"
            ]
        ]
        .concat()
    );
    let other = cluster.node(3, Router::new());
    connect(&other, &server).await;
    let error = call::<Echo>(&other, to, &Bytes::new(), patiently())
        .await
        .unwrap_err();
    assert_eq!((error.status, &*error.message), (Status::Denied, "not you"));
    let refusing = Diary {
        refuses: Some(to),
        ..Diary::default()
    };
    let refused = Intercepted::new(Arc::new(client.clone()), Arc::new(refusing));
    let error = call::<Echo>(&refused, to, &Bytes::new(), patiently())
        .await
        .unwrap_err();
    assert_eq!(error.message, "not there");
    stop(&[&client, &other, &server]).await;
}

#[tokio::test]
async fn a_node_lists_its_methods_to_members() {
    let cluster = Cluster::new();
    let (client, server) = cluster.pair(probe::router()).await;
    let methods = call::<ListMethods>(&client, server.node_id(), &(), patiently()).await;
    let methods = methods.unwrap();
    let count = methods
        .iter()
        .find(|method| method.method == "count")
        .unwrap();
    assert_eq!((&*count.service, count.kind), ("probe", Kind::ServerStream));
    assert_eq!((&*count.access, count.idempotent), ("call", true));
    assert!(methods.iter().any(|method| method.service == "mesh"));
    let stranger = cluster.start(9, vec![], Router::new());
    connect(&stranger, &server).await;
    let error = call::<ListMethods>(&stranger, server.node_id(), &(), patiently()).await;
    assert_eq!(error.unwrap_err().status, Status::Unauthenticated);
    let user = cluster.start(10, vec![cluster.token(10, &[Scope::Call])], Router::new());
    connect(&user, &server).await;
    call::<ListMethods>(&user, server.node_id(), &(), patiently())
        .await
        .unwrap();
    stop(&[&client, &server, &stranger, &user]).await;
}

#[allow(unreachable_pub, reason = "the macro makes all that a service has")]
mod cross_lang {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Serialize, Deserialize)]
    pub struct Text {
        pub text: String,
        pub numbers: Vec<i64>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    pub struct EchoSum {
        pub echo: String,
        pub sum: i64,
    }

    meshwork_proto::service! {
        "cross_lang";
        /// What bindings of all languages call to see whether they understand each other.
        unary Ask("echo_sum", Call, true): Text => EchoSum;
    }
}

#[tokio::test]
async fn json_callers_need_no_types_of_ours() {
    let router = Router::new().unary::<cross_lang::Ask, _, _>(|_, asked| async move {
        Ok(cross_lang::EchoSum {
            sum: asked.numbers.iter().sum(),
            echo: asked.text,
        })
    });
    let (client, server) = Cluster::new().pair(router).await;
    let to = server.node_id();
    let asked = |body: &'static str| RawCall {
        method: cross_lang::METHODS[0],
        codec: Codec::Json,
        body: body.into(),
        options: patiently(),
    };
    let call = asked(r#"{"text": "hi", "numbers": [1, 2, 3]}"#);
    let answer = client.call_raw(to, call).await.unwrap();
    assert_eq!(answer, r#"{"echo":"hi","sum":6}"#);
    let call = asked(r#"{"text": "hi"}"#);
    let error = client.call_raw(to, call).await.unwrap_err();
    assert_eq!((error.status, &*error.reason), (Status::Invalid, "decode"));
    assert!(error.message.contains("numbers"), "{error}");
    stop(&[&client, &server]).await;
}
