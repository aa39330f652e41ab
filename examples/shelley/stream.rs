//! The stream of one conversation: a snapshot, then whatever is new, and a heartbeat when nothing is.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, Sse};
use futures_util::stream::{Stream, unfold};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::api::{ConversationState, StreamResponse};
use crate::server::{Refused, Server};

const HEARTBEAT: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct From {
    last_sequence_id: u64,
}

/// Lasts until the conversation is deleted or the client goes away.
pub(crate) async fn stream(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Query(from): Query<From>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    server.conversation(&id)?;
    let mut changes = server.changes();
    // The first frame is due at once.
    changes.mark_changed();
    let start = (server, changes, from.last_sequence_id, None);
    let frames = unfold(start, move |(server, mut changes, mut last, mut told)| {
        let id = id.clone();
        async move {
            // Other conversations change as well, which tells the reader of this one nothing.
            let due = Instant::now() + HEARTBEAT;
            loop {
                let changed = timeout_at(due, changes.changed()).await;
                let heartbeat = changed.is_err();
                let (conversation, messages) = server.news(&id, last)?;
                let state = (conversation.working, conversation.slug.clone());
                if !heartbeat && messages.is_empty() && told.as_ref() == Some(&state) {
                    continue;
                }
                last = messages.last().map_or(last, |message| message.sequence_id);
                told = Some(state);
                let frame = StreamResponse {
                    conversation_state: ConversationState {
                        conversation_id: id,
                        working: conversation.working,
                        model: conversation.model.clone().unwrap_or_default(),
                    },
                    messages,
                    conversation,
                    heartbeat,
                };
                let data = serde_json::to_string(&frame).unwrap_or_default();
                let event = Event::default().data(data);
                return Some((Ok(event), (server, changes, last, told)));
            }
        }
    });
    Ok(Sse::new(frames))
}
