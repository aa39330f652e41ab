//! What files hold and where links lead: from memory where that is enough, else from the server.

use inflight::fuse::fuser::Errno;
use serde_json::Value;

use crate::api::Message;
use crate::client::Failed;
use crate::files::{Files, Refused};
use crate::node::{Field, Node, OfModel, Part, message_name};

const README: &str = "\
Conversations as files.

    id=$(cat new/clone)                              a new conversation
    echo model=predictable cwd=/tmp > conversation/$id/ctl
    echo hello > conversation/$id/send               close(2) waits for the server
    cat conversation/$id/messages/last/1/0/content.md
    echo hello | new/start                           the same in one step; prints the id
    touch conversation/$id/archived                  rm takes it back, rmdir the directory deletes
    ls conversation                                  links from the server's ids and slugs
";

const START: &str = r#"#!/bin/sh
# Says what stdin says in a new conversation in this directory, and prints its id.
set -e
here=$(dirname "$0")
id=$(cat "$here/clone")
conversation="$here/../../../conversation/$id"
case $PWD in
    *[[:space:]]*) ;;
    *) echo "cwd=$PWD" > "$conversation/ctl" ;;
esac
cat > "$conversation/send"
echo "$id"
"#;

impl Files {
    /// What a file holds.
    pub(crate) async fn text(&self, node: &Node) -> Result<String, Refused> {
        if let Some(text) = self.known_text(node) {
            return Ok(text);
        }
        Ok(match node {
            Node::Field(n, field) => {
                let row = &self.transcript(*n).await?.conversation;
                let text = match field {
                    Field::Slug => row.slug.clone().ok_or(Errno::ENOENT)?,
                    Field::CreatedAt => row.created_at.clone(),
                    Field::UpdatedAt => row.updated_at.clone(),
                    _ => return Ok(String::new()),
                };
                text + "\n"
            }
            Node::Count(n) => format!("{}\n", self.transcript(*n).await?.messages.len()),
            Node::AllJson(n) => {
                let transcript = self.transcript(*n).await?;
                serde_json::to_string_pretty(&*transcript).map_err(Failed::new)? + "\n"
            }
            Node::AllMarkdown(n) => {
                let transcript = self.transcript(*n).await?;
                let messages = transcript.messages.iter().enumerate();
                messages
                    .map(|(at, it)| {
                        let name = message_name(at, &it.kind);
                        format!("## {name}\n\n{}\n\n", it.text().trim_end())
                    })
                    .collect()
            }
            _ => String::new(),
        })
    }

    /// What a file holds that the server need not be asked for.
    pub(crate) fn known_text(&self, node: &Node) -> Option<String> {
        Some(match node {
            Node::Readme => README.to_owned(),
            Node::OfModel(_, OfModel::Start) => START.to_owned(),
            Node::OfModel(model, OfModel::Id) => format!("{model}\n"),
            Node::OfModel(..) => String::new(),
            Node::Field(n, field) => {
                let one = self.known.one(*n)?;
                match field {
                    Field::Ctl => {
                        let model = one.model.map(|model| format!("model={model}"));
                        let cwd = one.cwd.map(|cwd| format!("cwd={cwd}"));
                        let said: Vec<String> = model.into_iter().chain(cwd).collect();
                        said.join(" ") + "\n"
                    }
                    Field::FuseId => one.name + "\n",
                    Field::Id => one.server_id? + "\n",
                    Field::Slug | Field::CreatedAt | Field::UpdatedAt => return None,
                    _ => String::new(),
                }
            }
            Node::Part(n, at, part) => {
                let message = self.known.message(*n, *at)?;
                match part {
                    Part::Content => message.text(),
                    Part::MessageId => message.message_id.clone() + "\n",
                    Part::ConversationId => message.conversation_id.clone() + "\n",
                    Part::SequenceId => format!("{}\n", message.sequence_id),
                    Part::Type => message.kind.clone() + "\n",
                    Part::CreatedAt => message.created_at.clone() + "\n",
                }
            }
            Node::Data(n, at, names) => match self.value(*n, *at, names)? {
                Value::String(text) => text,
                other => format!("{other}\n"),
            },
            _ => return None,
        })
    }

    /// Where a link leads.
    pub(crate) async fn link(&self, node: &Node) -> Result<String, Refused> {
        Ok(match node {
            Node::New => "model/default/new".to_owned(),
            Node::DefaultModel => match self.api.default_model().await? {
                Some(name) => name,
                None => self
                    .models()
                    .await?
                    .first()
                    .ok_or(Errno::ENOENT)?
                    .id
                    .clone(),
            },
            Node::Alias(alias) => self.known.by_alias(alias).ok_or(Errno::ENOENT)?,
            Node::LatestAt(at) => {
                let list = self.list().await?;
                let at = at.checked_sub(1).and_then(|at| list.get(at as usize));
                format!("../{}", at.ok_or(Errno::ENOENT)?.1)
            }
            Node::LastAt(n, of, at) => {
                let messages = &self.transcript(*n).await?.messages;
                let at = messages.len().saturating_sub(*of as usize) + *at as usize;
                let kind = &messages.get(at).ok_or(Errno::ENOENT)?.kind;
                format!("../../{}", message_name(at, kind))
            }
            Node::Field(n, Field::Cwd) => self.one(*n)?.cwd.ok_or(Errno::ENOENT)?,
            Node::Field(n, Field::Model) => {
                let model = self.one(*n)?.model.ok_or(Errno::ENOENT)?;
                format!("../../model/{model}")
            }
            _ => return Err(Errno::EINVAL.into()),
        })
    }

    /// Whether it is a directory; what stands in the data of a message decides that for itself.
    pub(crate) fn is_dir(&self, node: &Node) -> bool {
        match node {
            Node::Data(n, at, names) => self
                .value(*n, *at, names)
                .is_some_and(|value| value.is_object() || value.is_array()),
            other => other.is_dir(),
        }
    }

    pub(crate) fn data(&self, n: u32, at: u32, names: &str) -> Option<Node> {
        self.value(n, at, names)?;
        Some(Node::Data(n, at, names.into()))
    }

    pub(crate) fn value(&self, n: u32, at: u32, names: &str) -> Option<Value> {
        value_of(&*self.known.message(n, at)?, names)
    }
}

/// `llm_data/Content/0/Text`: the first name is a field of the message, whose text is JSON.
fn value_of(message: &Message, names: &str) -> Option<Value> {
    let mut names = names.split('/');
    let text = match names.next()? {
        "llm_data" => message.llm_data.as_deref(),
        "usage_data" => message.usage_data.as_deref(),
        _ => None,
    };
    let mut value = serde_json::from_str(text?).ok()?;
    for name in names {
        value = match value {
            Value::Object(mut members) => members.remove(name)?,
            Value::Array(mut items) => {
                let at = name.parse::<usize>().ok().filter(|at| *at < items.len())?;
                items.swap_remove(at)
            }
            _ => return None,
        };
    }
    Some(value)
}

pub(crate) fn members(value: &Value) -> Vec<String> {
    match value {
        // What is no name of a file is left out.
        Value::Object(members) => members
            .keys()
            .filter(|name| {
                !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.')
            })
            .cloned()
            .collect(),
        Value::Array(items) => (0..items.len()).map(|at| at.to_string()).collect(),
        _ => Vec::new(),
    }
}
