//! The conversations of the server, in memory. Nothing here waits.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::api::{Content, Conversation, Message, Transcript};
use crate::model;

/// All conversations, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Store {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    transcript: Transcript,
    /// What the model is at; it is working as long as there is one.
    turns: Vec<(u64, AbortHandle)>,
    next_turn: u64,
    /// Gone when the latest turn is.
    latest: Option<oneshot::Receiver<()>>,
}

/// One thing that the model is to answer.
#[derive(Debug)]
pub(crate) struct Turn {
    /// To end it by.
    pub(crate) number: u64,
    /// Ends when it is this turn's time.
    pub(crate) before: Option<oneshot::Receiver<()>>,
    /// To be dropped at its end.
    pub(crate) done: oneshot::Sender<()>,
}

/// What to list.
#[derive(Debug)]
pub(crate) struct Filter<'a> {
    pub(crate) archived: bool,
    /// In the slug, and with `content` in the messages too.
    pub(crate) text: &'a str,
    pub(crate) content: bool,
    pub(crate) offset: usize,
    pub(crate) limit: usize,
}

impl Store {
    pub(crate) fn begin(&mut self, model: &str, cwd: &str) -> String {
        let id = loop {
            let id = new_id();
            if self.row(&id).is_none() {
                break id;
            }
        };
        let now = now();
        self.rows.push(Row {
            transcript: Transcript {
                messages: Vec::new(),
                conversation: Conversation {
                    conversation_id: id.clone(),
                    user_initiated: true,
                    created_at: now.clone(),
                    updated_at: now,
                    cwd: Some(cwd.to_owned()),
                    model: Some(model.to_owned()),
                    ..Conversation::default()
                },
                context_window_size: Some(0),
            },
            turns: Vec::new(),
            next_turn: 0,
            latest: None,
        });
        id
    }

    /// The newest first.
    pub(crate) fn list(&self, filter: &Filter<'_>) -> Vec<Conversation> {
        let rows = self.rows.iter().rev();
        let mut found: Vec<&Row> = rows.filter(|row| row.is_in(filter)).collect();
        found.sort_by(|a, b| {
            b.conversation()
                .updated_at
                .cmp(&a.conversation().updated_at)
        });
        let page = found.into_iter().skip(filter.offset).take(filter.limit);
        page.map(Row::shown).collect()
    }

    pub(crate) fn conversation(&self, id: &str) -> Option<Conversation> {
        self.row(id).map(Row::shown)
    }

    pub(crate) fn transcript(&self, id: &str) -> Option<Transcript> {
        let row = self.row(id)?;
        Some(Transcript {
            conversation: row.shown(),
            ..row.transcript.clone()
        })
    }

    pub(crate) fn messages_after(&self, id: &str, sequence_id: u64) -> Vec<Message> {
        let messages = self.row(id).map(|row| &row.transcript.messages);
        let new = messages.into_iter().flatten();
        new.filter(|message| message.sequence_id > sequence_id)
            .cloned()
            .collect()
    }

    /// Does nothing if the conversation is gone.
    pub(crate) fn say(&mut self, id: &str, kind: &str, content: &[Content]) {
        let Some(row) = self.row_mut(id) else {
            return;
        };
        let sequence_id = row.transcript.messages.len() as u64 + 1;
        let is_last = matches!(kind, "agent" | "error");
        let role = u32::from(is_last);
        let now = now();
        row.transcript.conversation.updated_at.clone_from(&now);
        row.transcript.messages.push(Message {
            message_id: format!("{id}-{sequence_id}"),
            conversation_id: id.to_owned(),
            sequence_id,
            kind: kind.to_owned(),
            llm_data: Some(model::llm_data(role, content, is_last)),
            usage_data: is_last.then(|| r#"{"input_tokens":0,"output_tokens":0}"#.to_owned()),
            created_at: now,
            end_of_turn: is_last.then_some(true),
            ..Message::default()
        });
    }

    /// Notes that the model is at work; one turn comes after the other.
    pub(crate) fn begin_turn(&mut self, id: &str, start: impl FnOnce(Turn) -> AbortHandle) {
        if let Some(row) = self.row_mut(id) {
            let (done, latest) = oneshot::channel();
            let turn = Turn {
                number: row.next_turn,
                before: row.latest.replace(latest),
                done,
            };
            row.next_turn += 1;
            row.turns.push((turn.number, start(turn)));
        }
    }

    pub(crate) fn end_turn(&mut self, id: &str, turn: u64) {
        if let Some(row) = self.row_mut(id) {
            row.turns.retain(|(other, _)| *other != turn);
        }
    }

    /// Whether there was anything to stop.
    pub(crate) fn cancel(&mut self, id: &str) -> bool {
        let turns = self.row_mut(id).map(|row| std::mem::take(&mut row.turns));
        let turns = turns.unwrap_or_default();
        turns.iter().for_each(|(_, turn)| turn.abort());
        !turns.is_empty()
    }

    pub(crate) fn archive(&mut self, id: &str, archived: bool) -> Option<Conversation> {
        let row = self.row_mut(id)?;
        row.transcript.conversation.archived = archived;
        Some(row.shown())
    }

    pub(crate) fn delete(&mut self, id: &str) -> bool {
        self.cancel(id);
        let before = self.rows.len();
        self.rows.retain(|row| row.id() != id);
        self.rows.len() < before
    }

    /// Gives it this slug, with a number behind it if another has it.
    pub(crate) fn name(&mut self, id: &str, slug: &str) -> Option<Conversation> {
        let taken = |slug: &str| {
            let others = self.rows.iter().filter(|row| row.id() != id);
            others
                .map(Row::conversation)
                .any(|other| other.slug.as_deref() == Some(slug))
        };
        let numbered = (2..).map(|n| format!("{slug}-{n}"));
        let slug = std::iter::once(slug.to_owned())
            .chain(numbered)
            .find(|slug| !taken(slug))?;
        let row = self.row_mut(id)?;
        row.transcript.conversation.slug = Some(slug);
        Some(row.shown())
    }

    fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id() == id)
    }

    fn row_mut(&mut self, id: &str) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.id() == id)
    }
}

impl Row {
    fn conversation(&self) -> &Conversation {
        &self.transcript.conversation
    }

    fn id(&self) -> &str {
        &self.conversation().conversation_id
    }

    fn shown(&self) -> Conversation {
        Conversation {
            working: !self.turns.is_empty(),
            ..self.conversation().clone()
        }
    }

    fn is_in(&self, filter: &Filter<'_>) -> bool {
        let has = |text: &str| text.to_lowercase().contains(&filter.text.to_lowercase());
        let slug = self.conversation().slug.as_deref().unwrap_or_default();
        self.conversation().archived == filter.archived
            && (has(slug)
                || filter.content && self.transcript.messages.iter().any(|it| has(&it.text())))
    }
}

// "c" and six digits of base 32.
fn new_id() -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random = random();
    let digits = (0..6).map(|at| char::from(DIGITS[(random >> (5 * at)) as usize % 32]));
    std::iter::once('c').chain(digits).collect()
}

/// A number that nobody can foresee: the keys of each hasher are new.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn now() -> String {
    // As many digits each time, so that texts sort as times do.
    format!("{:.6}", jiff::Timestamp::now())
}
