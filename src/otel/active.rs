//! The span of the application's own OpenTelemetry that this thread works under.

use opentelemetry::{Context, trace::TraceContextExt};

use crate::{
    id::{OpId, TraceId},
    outlet::Active,
};

/// Finds it, if there is one. Only ids are read: no code of the application runs.
pub(super) fn find() -> Option<Active> {
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        Some(Active {
            trace: TraceId::new(u128::from_be_bytes(span.trace_id().to_bytes()))?,
            span: OpId::new(u64::from_be_bytes(span.span_id().to_bytes()))?,
            flags: span.trace_flags().to_u8(),
        })
    })
}
