//! What server and file system say to each other: the shapes of the JSON.

use serde::{Deserialize, Deserializer, Serialize};

/// Asked for by the server in everything that changes something.
pub(crate) const REQUEST_HEADER: &str = "X-Shelley-Request";

/// One row of `GET /api/conversations`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Conversation {
    pub(crate) conversation_id: String,
    /// Made by the server some time after the first message.
    pub(crate) slug: Option<String>,
    pub(crate) user_initiated: bool,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) cwd: Option<String>,
    pub(crate) archived: bool,
    pub(crate) parent_conversation_id: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) working: bool,
}

/// One message; what was said is JSON in a string.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Message {
    pub(crate) message_id: String,
    pub(crate) conversation_id: String,
    pub(crate) sequence_id: u64,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) llm_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage_data: Option<String>,
    pub(crate) created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) display_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_of_turn: Option<bool>,
}

impl Message {
    /// What was said, without what only the model needs.
    pub(crate) fn text(&self) -> String {
        let data = self.llm_data.as_deref().unwrap_or_default();
        match serde_json::from_str::<LlmData>(data) {
            Ok(data) => {
                let texts = data.content.into_iter().map(|content| content.text);
                let texts = texts.filter(|text| !text.is_empty());
                texts.collect::<Vec<_>>().join("\n")
            }
            Err(_) => data.to_owned(),
        }
    }
}

/// What stands in [`Message::llm_data`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct LlmData {
    /// 0: the user, 1: the model.
    pub(crate) role: u32,
    #[serde(deserialize_with = "or_null")]
    pub(crate) content: Vec<Content>,
    pub(crate) end_of_turn: bool,
}

/// A part of what was said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Content {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    /// 2: text, 3: thinking, 5: use of a tool.
    #[serde(rename = "Type")]
    pub(crate) kind: u32,
    pub(crate) text: String,
    pub(crate) tool_name: String,
    pub(crate) tool_input: Option<serde_json::Value>,
}

/// `GET /api/conversation/{id}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Transcript {
    #[serde(deserialize_with = "or_null")]
    pub(crate) messages: Vec<Message>,
    pub(crate) conversation: Conversation,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) context_window_size: Option<u64>,
}

/// A frame of `GET /api/conversation/{id}/stream`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StreamResponse {
    pub(crate) messages: Vec<Message>,
    pub(crate) conversation: Conversation,
    pub(crate) conversation_state: ConversationState,
    pub(crate) heartbeat: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ConversationState {
    pub(crate) conversation_id: String,
    pub(crate) working: bool,
    pub(crate) model: String,
}

/// One of `GET /api/models`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Model {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    pub(crate) ready: bool,
    pub(crate) max_context_tokens: u64,
}

/// The body of `POST /api/conversations/new` and of `POST /api/conversation/{id}/chat`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Say {
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<String>,
}

/// The body of `POST /api/conversation/{id}/rename`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rename {
    pub(crate) slug: String,
}

/// What the server says to most of what it is asked to do.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<String>,
}

/// An empty list is `null` to servers written in Go.
fn or_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}
