//! What an op begins with.

use std::borrow::Cow;

use super::{Detail, Target};
use crate::{
    id::{Context, OpId, TraceId},
    snapshot::{Kind, ParentFrom},
};

/// What is known of an op when it begins, besides its ids.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) kind: Kind,
    pub(crate) name: Cow<'static, str>,
    pub(crate) target: Target<'a>,
    /// The route template that a framework matched; empty if none.
    pub(crate) route: &'a str,
    pub(crate) detail: Detail,
    pub(crate) parent: Parent,
    /// The phase it begins in.
    pub(crate) phase: Option<&'static str>,
}

/// Where a new op hangs.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    /// The current op; without one it is a root.
    Current,
    /// No op.
    Root,
    /// An op in the process that sent the request, and the W3C trace flags that came with it.
    #[cfg_attr(not(feature = "http"), expect(dead_code))]
    Remote(Context, ParentFrom, Option<u8>),
}

/// The ids of an op, and where it comes from.
#[derive(Debug)]
pub(crate) struct Lineage {
    pub(crate) id: OpId,
    pub(crate) trace: TraceId,
    pub(crate) trace_flags: Option<u8>,
    pub(crate) parent: Option<OpId>,
    pub(crate) parent_from: Option<ParentFrom>,
}
