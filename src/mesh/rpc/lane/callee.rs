//! The answering side of a lane.
//!
//! A handler is polled once where its call arrives. One that is done then, as most are, is answered
//! without a task of its own; any other goes on in one, under the guard that every call has. A method
//! whose handlers keep the lane busy gets tasks from the start.
//!
//! The connection must not be closed as unused before the answers have arrived: their callers would
//! make the calls again. So the lane counts as a call under way from its first call on; only when
//! somebody wants to close the connection, it asks the caller whether all answers are there.

use std::sync::Arc;

use bytes::Bytes;
use meshwork_identity::{Grant, Timestamp};
use meshwork_proto::rpc::lane::{Declare, LANE_METHODS, LaneCall, ToCallee, ToCaller};
use meshwork_proto::rpc::{Kind, RpcError};
use meshwork_proto::service::{Access, BoxFuture, CallContext, MethodInfo};
use quinn::{ReadError, RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::debug;

use super::super::desk::{catch_panic, wrong_kind};
use super::super::nested::Inherited;
use super::super::server::{Ended, Server, shutting_down};
use super::super::share::Place;
use super::super::{Busy, Standing, stream_code, too_large};
use super::answer::deliver;
use super::frames::Frames;
use super::method::Method;
use super::out::Out;
use super::running::{Ends, Running};
use super::{BATCH, MAX_LANES};

/// Longest name of a service or a method on a lane, in bytes.
const MAX_NAME: usize = meshwork_proto::limits::MAX_NAME;
/// One lane.
struct Callee {
    server: Arc<Server>,
    out: Arc<Out>,
    methods: Vec<Option<Method>>,
    running: Arc<Running>,
    /// Keeps the connection from being closed as unused.
    hold: Option<Busy>,
    /// Calls taken so far.
    taken: u64,
    /// Calls that the caller was last asked about.
    asked_at: Option<u64>,
    /// The requests to close the connection that were answered already.
    heeded: u64,
    /// As it was when this batch of calls began.
    now: Now,
    standing: crate::watch::Receiver<Standing>,
}

/// What is looked up once for a batch of calls.
#[derive(Default)]
struct Now {
    arrived: Option<Instant>,
    clock: Timestamp,
    draining: bool,
    /// Of the router that the methods were found in.
    generation: Option<u64>,
    grants: Option<Arc<[Grant]>>,
}

/// What a call holds until it is answered.
struct Held {
    _place: Place,
    _of_method: Option<OwnedSemaphorePermit>,
    _request: OwnedSemaphorePermit,
}

/// What has become of a call where it arrived.
enum Begun {
    Done(Held, Result<Bytes, RpcError>),
    Rest(Rest),
}

/// A call that goes on.
struct Rest {
    id: u64,
    method: MethodInfo,
    held: Held,
    inherited: Inherited,
    work: BoxFuture<Result<Bytes, RpcError>>,
}

/// Why a lane ends.
#[derive(Debug)]
enum End {
    /// The node shuts down, and all answers have arrived.
    Drained,
    /// The stream or the connection ended.
    Gone,
    /// The caller breaks the format.
    Broken(String),
}

/// Serves a lane until it ends. Its type byte has been read, and `begun` after it.
pub(in crate::rpc) async fn serve(
    server: Arc<Server>,
    mut send: SendStream,
    recv: RecvStream,
    begun: &[u8],
) {
    let counted = server.clone();
    let Some(_counted) = counted.lanes_served.enter(MAX_LANES) else {
        let _ = send.reset(stream_code::NOT_SERVED);
        return;
    };
    let out = Arc::<Out>::default();
    let mut callee = Callee {
        out: out.clone(),
        methods: Vec::new(),
        running: Arc::default(),
        hold: None,
        taken: 0,
        asked_at: None,
        heeded: server.serving.calls.asked(),
        now: Now::default(),
        standing: server.serving.standing.clone(),
        server,
    };
    let running = callee.running.clone();
    let end = tokio::select! {
        biased;
        end = callee.run(Frames::new(recv, begun)) => end,
        error = out.write_to(&mut send) => {
            debug!(%error, "a lane cannot be written");
            End::Gone
        }
    };
    running.abort_all();
    match end {
        End::Drained => {
            let _ = send.write_chunk(out.rest()).await;
            let _ = send.finish();
            let _ = send.stopped().await;
        }
        End::Gone => drop(send.reset(stream_code::CANCELLED)),
        End::Broken(why) => {
            debug!(peer = ?callee.server.serving.peer, why, "a lane breaks the format");
            let _ = send.reset(stream_code::BAD_REQUEST);
        }
    }
}

impl Callee {
    async fn run(&mut self, mut frames: Frames) -> End {
        let (server, running) = (self.server.clone(), self.running.clone());
        let mut draining = false;
        // What came with the first byte of the stream is here already.
        if let Err(error) = self.take(&mut frames).await {
            return End::Broken(error);
        }
        let calls = &server.serving.calls;
        let mut asked = self.heeded;
        loop {
            if self.settle(draining) {
                return End::Drained;
            }
            let closing = calls.asked_again(asked);
            tokio::select! {
                biased;
                more = frames.more() => match more {
                    Ok(true) => {
                        if let Err(error) = self.take(&mut frames).await {
                            return End::Broken(error);
                        }
                    }
                    Ok(false) | Err(ReadError::ConnectionLost(_)) => return End::Gone,
                    Err(error) => return End::Broken(error.to_string()),
                },
                () = closing => asked = calls.asked(),
                () = running.none.notified() => {}
                () = server.desk.draining.cancelled(), if !draining => draining = true,
                () = server.desk.stopping.cancelled() => return End::Gone,
            }
        }
    }

    /// Asks whether all answers have arrived, if that is of interest. Whether it is known that they
    /// have, and the node shuts down.
    fn settle(&mut self, draining: bool) -> bool {
        let draining = draining || self.now.draining;
        if self.hold.is_none() {
            self.heeded = self.server.serving.calls.asked();
            return draining && self.running.is_empty();
        }
        let calls = &self.server.serving.calls;
        let wanted = draining || calls.is_closing() || calls.asked() != self.heeded;
        if wanted && self.running.is_empty() && self.asked_at != Some(self.taken) {
            self.asked_at = Some(self.taken);
            let mark = self.taken;
            self.out.put(|out, ()| ToCaller::Settle(mark).put(out));
        }
        false
    }

    fn settled(&mut self, mark: u64) {
        if mark == self.taken && self.asked_at == Some(mark) && self.running.is_empty() {
            self.heeded = self.server.serving.calls.asked();
            self.asked_at = None;
            self.hold = None;
        }
    }

    /// Takes the frames that have arrived.
    async fn take(&mut self, frames: &mut Frames) -> Result<(), String> {
        let mut count = 0;
        let taken = self.taken;
        self.begin_batch();
        while let Some(frame) = frames.next().map_err(|error| error.to_string())? {
            match ToCallee::decode(frame).map_err(|error| error.to_string())? {
                ToCallee::Call(call, body) => self.call(call, body)?,
                ToCallee::Cancel(id) => self.running.abort(id),
                ToCallee::Settled(mark) => self.settled(mark),
                ToCallee::Declare(declare) => self.declare(declare)?,
            }
            count += 1;
            if count % BATCH == 0 {
                // Lets the answers out, and others have their turn.
                tokio::task::yield_now().await;
                self.out.room().await;
                self.begin_batch();
            }
        }
        if self.taken > taken {
            self.server.serving.last_use.touch();
        }
        self.out.room().await;
        Ok(())
    }

    fn begin_batch(&mut self) {
        let desk = &self.server.desk;
        self.now.arrived = Some(Instant::now());
        self.now.clock = desk.clock.now();
        self.now.draining = desk.draining.is_cancelled();
        let generation = desk.generation();
        if self.now.generation != Some(generation) {
            self.now.generation = Some(generation);
            for method in self.methods.iter_mut().flatten() {
                method.handler = self.server.handler(&method.service, &method.name);
                method.allowed = None;
            }
        }
        if self.now.grants.is_none() || !self.standing.is_seen() {
            self.now.grants = Some(self.standing.borrow_and_update().grants.clone());
            for method in self.methods.iter_mut().flatten() {
                method.allowed = None;
            }
        }
    }

    fn declare(&mut self, declare: Declare) -> Result<(), String> {
        let Declare {
            index,
            codec,
            service,
            method,
        } = declare;
        let at = usize::from(index);
        if index >= LANE_METHODS || self.methods.get(at).is_some_and(Option::is_some) {
            return Err(format!("method {index} cannot be declared"));
        }
        if service.len() > MAX_NAME || method.len() > MAX_NAME {
            return Err("a name that is too long".to_owned());
        }
        if self.methods.len() <= at {
            self.methods.resize_with(at + 1, || None);
        }
        self.methods[at] = Some(Method {
            handler: self.server.handler(&service, &method),
            service: service.into(),
            name: method.into(),
            codec,
            allowed: None,
            strikes: 0,
        });
        Ok(())
    }

    /// Takes a call: answers it, or lets it go on in a task.
    fn call(&mut self, call: LaneCall, body: Bytes) -> Result<(), String> {
        if self.running.has(call.id) {
            return Err(format!("call {} is under way already", call.id));
        }
        if self.hold.is_none() && !self.now.draining {
            self.hold = self.server.serving.calls.enter();
            if self.hold.is_none() {
                let frame = ToCaller::NotServed(call.id);
                self.out.put(|out, ()| frame.put(out));
                return Ok(());
            }
        }
        self.taken += 1;
        let Some(Some(_)) = self.methods.get(usize::from(call.method)) else {
            return Err(format!("method {} is not declared", call.method));
        };
        let largest = self.server.desk.limits.frame;
        match self.begin(&call, body) {
            Ok(Begun::Done(held, outcome)) => {
                if let Some(large) = deliver(&self.out, call.id, outcome, largest) {
                    let sent = large.send(self.server.clone());
                    self.spawn(call.id, async move {
                        sent.await;
                        drop(held);
                    });
                }
            }
            Ok(Begun::Rest(rest)) => {
                let going_on = rest.run(self.server.clone(), self.out.clone());
                self.spawn(call.id, going_on);
            }
            Err(error) => drop(deliver(&self.out, call.id, Err(error), largest)),
        }
        Ok(())
    }

    /// Decides whether a call is served, and begins it.
    fn begin(&mut self, call: &LaneCall, body: Bytes) -> Result<Begun, RpcError> {
        if self.now.draining {
            return Err(shutting_down());
        }
        let Self {
            server,
            methods,
            standing,
            now,
            ..
        } = self;
        let method = methods[usize::from(call.method)]
            .as_mut()
            .expect("it is declared, as was just seen");
        let info = method.handler.as_ref().map_err(Clone::clone)?.info();
        if info.kind != Kind::Unary {
            return Err(wrong_kind(&info));
        }
        let largest = server.desk.limits.frame;
        if body.len() > largest {
            return Err(too_large("the request", body.len(), largest));
        }
        let is_known = info.access == Access::Open
            || !server.serving.expects_tokens
            || standing.borrow().presented;
        if is_known {
            method.check(&info, server, standing, now.clock)?;
        }
        let held = Held {
            _place: server.serving.share.place()?,
            _of_method: server.desk.method_place(&info)?,
            _request: server.serving.share.request(body.len())?,
        };
        let arrived = now.arrived.unwrap_or_else(Instant::now);
        let inherited = Inherited {
            deadline: call.deadline().and_then(|left| arrived.checked_add(left)),
            trace: call.trace,
        };
        let cx = CallContext {
            peer: server.serving.peer,
            local: server.desk.local,
            grants: now.grants.clone().unwrap_or_default(),
            deadline: call.deadline(),
            idempotency_key: call.idempotency_key,
            trace: call.trace,
        };
        let begun = if is_known {
            method.begin(cx, body, inherited)
        } else {
            Err(method.begin_later(server.clone(), cx, body))
        };
        Ok(match begun {
            Ok(outcome) => Begun::Done(held, outcome),
            Err(work) => Begun::Rest(Rest {
                id: call.id,
                method: info,
                held,
                inherited,
                work,
            }),
        })
    }

    /// Lets a call go on by itself, until it ends or is cancelled.
    fn spawn(&self, id: u64, work: impl Future<Output = ()> + Send + 'static) {
        let ends = Ends {
            running: self.running.clone(),
            id,
        };
        // Held until the task is in the table, so that its end finds it there.
        let mut tasks = self.running.tasks();
        let task = self.server.desk.calls.spawn(async move {
            let _ends = ends;
            work.await;
        });
        tasks.insert(id, task.abort_handle());
    }
}

impl Rest {
    async fn run(self, server: Arc<Server>, out: Arc<Out>) {
        let Self {
            id,
            method,
            held,
            inherited,
            work,
        } = self;
        let outcome = {
            let work = inherited.within(catch_panic(method, work));
            // The caller's end of interest aborts the task.
            let gone = std::future::pending::<()>();
            let end = &server.desk.stopping;
            let ended = server.guard(gone, &method, inherited.deadline, end, work);
            match ended.await {
                Ok(outcome) => outcome,
                Err(Ended::Failed(error)) => Err(error),
                Err(Ended::Reset(_)) => return,
            }
        };
        if let Some(large) = deliver(&out, id, outcome, server.desk.limits.frame) {
            large.send(server).await;
        }
        drop(held);
    }
}
