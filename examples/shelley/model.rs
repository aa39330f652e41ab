//! The predictable model: what it says to a message, and after how long.

use std::time::Duration;

use crate::api::{Content, LlmData};

/// The only model of this server.
pub(crate) const PREDICTABLE: &str = "predictable";

/// How many tokens it claims to take in.
pub(crate) const CONTEXT: u64 = 200_000;

const TEXT: u32 = 2;

const THINKING: u32 = 3;

const TOOL_USE: u32 = 5;

/// What the model says, and when.
#[derive(Debug)]
pub(crate) struct Reply {
    /// `agent` or `error`.
    pub(crate) kind: &'static str,
    pub(crate) content: Vec<Content>,
    pub(crate) after: Duration,
}

/// Says what the model will say.
pub(crate) fn reply(message: &str) -> Reply {
    let always = std::env::var("PREDICTABLE_DELAY_MS")
        .ok()
        .and_then(|ms| ms.parse().ok())
        .map_or(Duration::ZERO, Duration::from_millis);
    let agent = |text: &str| Reply {
        kind: "agent",
        content: text_of(text),
        after: always,
    };
    let message = message.trim();
    match message.split_once(": ") {
        Some(("echo", text)) => agent(text),
        Some(("error", why)) => Reply {
            kind: "error",
            ..agent(&format!("LLM request failed: predictable error: {why}"))
        },
        Some(("delay", seconds)) if let Some(after) = delay(seconds) => Reply {
            after: always.saturating_add(after),
            ..agent(&format!("Delayed for {seconds} seconds"))
        },
        Some(("think", thought)) => Reply {
            content: vec![
                part(THINKING, thought),
                part(TEXT, "I've considered my approach."),
            ],
            ..agent("")
        },
        // It asks for the tool, and nobody runs it: this server does nothing to the machine it is on.
        Some(("bash", command)) => Reply {
            content: vec![
                part(TEXT, &format!("I'll run the command: {command}")),
                Content {
                    id: "tool-1".to_owned(),
                    tool_name: "bash".to_owned(),
                    tool_input: Some(serde_json::json!({ "command": command })),
                    ..part(TOOL_USE, "")
                },
            ],
            ..agent("")
        },
        _ => agent(match message {
            "hello" => "Well, hi there!",
            "Hello" => "Hello! I'm Shelley, your AI assistant. How can I help you today?",
            _ => "edit predictable.go to add a response for that one...",
        }),
    }
}

fn delay(seconds: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds.trim().parse().ok()?).ok()
}

/// The parts of a message, as they are kept.
pub(crate) fn llm_data(role: u32, content: &[Content], end_of_turn: bool) -> String {
    let data = LlmData {
        role,
        content: content.to_vec(),
        end_of_turn,
    };
    serde_json::to_string(&data).unwrap_or_default()
}

/// The one part of a message that is plain text.
pub(crate) fn text_of(text: &str) -> Vec<Content> {
    vec![part(TEXT, text)]
}

fn part(kind: u32, text: &str) -> Content {
    Content {
        kind,
        text: text.to_owned(),
        ..Content::default()
    }
}

/// A name for a conversation, from what it begins with; none if there is no letter in it.
pub(crate) fn slug(message: &str) -> Option<String> {
    let words = message
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(5);
    let slug = words.collect::<Vec<_>>().join("-").to_lowercase();
    Some(slug).filter(|slug| !slug.is_empty())
}
