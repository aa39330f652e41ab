//! The headers that carry an op's ids to the process that serves it.

use std::str::FromStr;

use http::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::{
    id::{Context, Digits, HEADER, TRACEPARENT, TraceParent},
    op::Op,
    snapshot::ParentFrom,
    tracker::{Parent, Tracker},
};

static INFLIGHT_OP: HeaderName = HeaderName::from_static(HEADER);
static TRACE_PARENT: HeaderName = HeaderName::from_static(TRACEPARENT);

/// Where the op of a request that came in hangs. Both headers are read: bad ones are counted.
pub(super) fn parent(tracker: &Tracker, headers: &HeaderMap) -> Parent {
    // A look at each name: to look the two up would hash them, which took ten times as long.
    let (mut has_call, mut has_trace) = (false, false);
    for name in headers.keys() {
        has_call |= *name == INFLIGHT_OP;
        has_trace |= *name == TRACE_PARENT;
    }
    if !has_call && !has_trace {
        return Parent::Current;
    }
    let call = only::<Context>(tracker, headers, &INFLIGHT_OP);
    let trace = only::<TraceParent>(tracker, headers, &TRACE_PARENT);
    match (call, trace) {
        (Some(call), trace) => {
            // Of whatever trace: who decided there that it is not sampled decided it for this request.
            let flags = trace.map(|trace| trace.flags);
            Parent::Remote(call, ParentFrom::InflightOp, flags)
        }
        (None, Some(trace)) => {
            Parent::Remote(trace.context, ParentFrom::TraceParent, Some(trace.flags))
        }
        (None, None) => Parent::Current,
    }
}

/// Puts the op into the trace of a request that another tracing has named already.
pub(super) fn take_over(tracker: &Tracker, op: &Op, headers: &HeaderMap) {
    let trace = only::<TraceParent>(tracker, headers, &TRACE_PARENT);
    // One that names the op itself was added by us, to headers that are used again.
    if let (Some(trace), Some(record)) = (trace, op.record())
        && trace.context.op != record.id
    {
        record.take_trace(trace.context.trace, trace.context.op, trace.flags);
    }
}

/// Adds the op's ids; `traceparent` only if it is wanted or spans are exported, and there is none.
pub(super) fn add(tracker: &Tracker, op: &Op, headers: &mut HeaderMap, traceparent: bool) {
    let (Some(context), Some(record)) = (op.context(), op.record()) else {
        return;
    };
    insert(headers, &INFLIGHT_OP, context.digits());
    let exported = tracker.is_exported();
    if (traceparent || exported) && !headers.contains_key(&TRACE_PARENT) {
        // A trace that began here is sampled if its spans leave; what others decided stays so.
        let flags = record.trace_flags().unwrap_or(u8::from(exported));
        let parent = TraceParent { context, flags };
        insert(headers, &TRACE_PARENT, parent.digits());
    }
}

/// Takes out ids of ours that another request was given.
pub(super) fn remove(headers: &mut HeaderMap) {
    headers.remove(&INFLIGHT_OP);
}

// A full map is left as it is: `insert` would panic.
fn insert(headers: &mut HeaderMap, name: &HeaderName, value: Digits) {
    if let Ok(value) = HeaderValue::from_str(value.as_str()) {
        let _ = headers.try_insert(name.clone(), value);
    }
}

// Which one of several were true nobody can tell.
fn only<T: FromStr>(tracker: &Tracker, headers: &HeaderMap, name: &HeaderName) -> Option<T> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let parsed = text.and_then(|text| text.parse().ok());
    if parsed.is_none() {
        tracker.count_malformed();
    }
    parsed
}
