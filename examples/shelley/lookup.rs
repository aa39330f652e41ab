//! Which names there are: from memory where that is enough, else from the server.

use std::sync::Arc;

use inflight::fuse::fuser::Errno;

use crate::content::members;
use crate::files::{Files, Refused};
use crate::known::One;
use crate::node::{FIELDS, Field, Node, OF_MODEL, OF_NEW, OfModel, PARTS, message_name, named};

impl Files {
    /// Finds a name without asking; None: the server must be asked.
    pub(crate) fn known_child(&self, parent: &Node, name: &str) -> Option<Option<Node>> {
        Some(match parent {
            Node::Root => match name {
                "README.md" => Some(Node::Readme),
                "new" => Some(Node::New),
                "model" => Some(Node::Models),
                "conversation" => Some(Node::Conversations),
                _ => None,
            },
            Node::Models if name == "default" => Some(Node::DefaultModel),
            Node::Model(model) => match named(&OF_MODEL, name) {
                Some(OfModel::Ready) => return None,
                what => what.map(|what| Node::OfModel(Arc::clone(model), what)),
            },
            Node::OfModel(model, OfModel::New) => {
                named(&OF_NEW, name).map(|what| Node::OfModel(Arc::clone(model), what))
            }
            Node::Conversations if name == "last" => Some(Node::Latest),
            // No slug begins with a dot, but what looks for hidden files does.
            Node::Conversations if name.starts_with('.') => None,
            Node::Conversations => match self.known.by_alias(name) {
                Some(_) => Some(Node::Alias(name.into())),
                None => Some(Node::Conversation(self.known.by_name(name)?)),
            },
            Node::Conversation(n) if name == "messages" => {
                self.known.one(*n).map(|_| Node::Messages(*n))
            }
            Node::Conversation(n) => {
                let field = named(&FIELDS, name);
                let one = self.known.one(*n);
                match field.zip(one) {
                    Some((field, one)) if is_there(field, &one)? => Some(Node::Field(*n, field)),
                    _ => None,
                }
            }
            Node::Messages(n) => match name {
                "all.json" => Some(Node::AllJson(*n)),
                "all.md" => Some(Node::AllMarkdown(*n)),
                "count" => Some(Node::Count(*n)),
                "last" => Some(Node::Last(*n)),
                _ => {
                    let at = name.split_once('-').and_then(|(at, _)| at.parse().ok());
                    let Some(at) = at else {
                        return Some(None);
                    };
                    let message = self.known.message(*n, at)?;
                    let is_it = message_name(at as usize, &message.kind) == name;
                    is_it.then_some(Node::Message(*n, at))
                }
            },
            Node::Last(n) => {
                let of = name.parse().ok().filter(|of| *of > 0);
                of.map(|of| Node::LastOf(*n, of))
            }
            Node::LastOf(..) | Node::Latest if name.parse::<u32>().is_err() => None,
            Node::Message(n, at) => match named(&PARTS, name) {
                Some(part) => Some(Node::Part(*n, *at, part)),
                None => self.data(*n, *at, name),
            },
            Node::Data(n, at, names) => self.data(*n, *at, &format!("{names}/{name}")),
            Node::Models | Node::LastOf(..) | Node::Latest => return None,
            _ => None,
        })
    }

    /// Finds a name by asking.
    pub(crate) async fn child(&self, parent: &Node, name: &str) -> Result<Node, Refused> {
        if let Some(known) = self.known_child(parent, name) {
            return known.ok_or(Errno::ENOENT.into());
        }
        let at = name.parse::<u32>().ok();
        let found = match parent {
            Node::Models | Node::Model(_) => {
                let models = self.models().await?;
                match parent {
                    Node::Model(id) => {
                        let is_ready = models.iter().any(|model| *model.id == **id && model.ready);
                        is_ready.then(|| Node::OfModel(Arc::clone(id), OfModel::Ready))
                    }
                    _ => {
                        let found = models.iter().find(|model| model.id == name);
                        found.map(|model| Node::Model(model.id.as_str().into()))
                    }
                }
            }
            Node::Conversations => {
                self.list().await?;
                let found = self.known.by_alias(name);
                found.map(|_| Node::Alias(name.into()))
            }
            Node::Latest => {
                let at = at.filter(|at| *at > 0);
                let len = self.list().await?.len() as u32;
                at.filter(|at| *at <= len).map(Node::LatestAt)
            }
            Node::Conversation(n) => {
                let row = self.row(*n).await?;
                match named(&FIELDS, name) {
                    Some(Field::Slug) if row.slug.is_some() => Some(Field::Slug),
                    Some(Field::Model) if row.model.is_some() => Some(Field::Model),
                    Some(Field::Cwd) if row.cwd.is_some() => Some(Field::Cwd),
                    Some(Field::Archived) if row.archived => Some(Field::Archived),
                    Some(field @ (Field::Working | Field::Cancel)) if row.working => Some(field),
                    _ => None,
                }
                .map(|field| Node::Field(*n, field))
            }
            Node::Messages(n) => {
                self.transcript(*n).await?;
                self.known_child(parent, name).flatten()
            }
            Node::LastOf(n, of) => {
                let len = self.transcript(*n).await?.messages.len() as u32;
                at.filter(|at| *at < len.min(*of))
                    .map(|at| Node::LastAt(*n, *of, at))
            }
            _ => None,
        };
        found.ok_or(Errno::ENOENT.into())
    }

    /// What stands in a directory, or the server's reason why that is not known.
    pub(crate) async fn entries(&self, node: &Node) -> Result<Vec<(String, Node)>, Refused> {
        let mut entries = Vec::new();
        let mut add = |name: &str, node| entries.push((name.to_owned(), node));
        match node {
            Node::Root => {
                add("README.md", Node::Readme);
                add("conversation", Node::Conversations);
                add("model", Node::Models);
                add("new", Node::New);
            }
            Node::Models => {
                add("default", Node::DefaultModel);
                for model in self.models().await?.iter() {
                    add(&model.id, Node::Model(model.id.as_str().into()));
                }
            }
            Node::Model(id) => {
                let models = self.models().await?;
                let is_ready = models.iter().any(|model| *model.id == **id && model.ready);
                let shown = OF_MODEL.into_iter();
                shown
                    .filter(|(_, what)| is_ready || *what != OfModel::Ready)
                    .for_each(|(name, what)| add(name, Node::OfModel(Arc::clone(id), what)));
            }
            Node::OfModel(id, OfModel::New) => {
                let shown = OF_NEW.into_iter();
                shown.for_each(|(name, what)| add(name, Node::OfModel(Arc::clone(id), what)));
            }
            Node::Conversations => {
                add("last", Node::Latest);
                for (n, name, row) in self.list().await? {
                    add(&name, Node::Conversation(n));
                    for alias in row.slug.iter().chain([&row.conversation_id]) {
                        add(alias, Node::Alias(alias.as_str().into()));
                    }
                }
            }
            Node::Conversation(n) => {
                let one = self.one(*n)?;
                let row = match one.server_id {
                    Some(_) => Some(self.row(*n).await?),
                    None => None,
                };
                for (name, field) in FIELDS {
                    let is_there = is_there(field, &one).unwrap_or_else(|| {
                        row.as_ref().is_some_and(|row| match field {
                            Field::Slug => row.slug.is_some(),
                            Field::Model => row.model.is_some(),
                            Field::Cwd => row.cwd.is_some(),
                            Field::Archived => row.archived,
                            _ => row.working,
                        })
                    });
                    if is_there {
                        add(name, Node::Field(*n, field));
                    }
                }
                add("messages", Node::Messages(*n));
            }
            Node::Messages(n) => {
                add("all.json", Node::AllJson(*n));
                add("all.md", Node::AllMarkdown(*n));
                add("count", Node::Count(*n));
                add("last", Node::Last(*n));
                if self.one(*n)?.server_id.is_some() {
                    let transcript = self.transcript(*n).await?;
                    for (at, message) in transcript.messages.iter().enumerate() {
                        add(
                            &message_name(at, &message.kind),
                            Node::Message(*n, at as u32),
                        );
                    }
                }
            }
            Node::LastOf(n, of) => {
                let len = self.transcript(*n).await?.messages.len() as u32;
                for at in 0..len.min(*of) {
                    add(&at.to_string(), Node::LastAt(*n, *of, at));
                }
            }
            Node::Message(n, at) => {
                PARTS
                    .into_iter()
                    .for_each(|(name, part)| add(name, Node::Part(*n, *at, part)));
                for name in ["llm_data", "usage_data"] {
                    if let Some(node) = self.data(*n, *at, name) {
                        add(name, node);
                    }
                }
            }
            Node::Data(n, at, names) => {
                for name in members(&self.value(*n, *at, names).unwrap_or_default()) {
                    let names = format!("{names}/{name}");
                    add(&name, Node::Data(*n, *at, names.into()));
                }
            }
            // Any number may be asked for there; whoever walks a tree shall not have to.
            _ => {}
        }
        Ok(entries)
    }
}

/// Whether a conversation has this; None: only the server knows.
fn is_there(field: Field, one: &One) -> Option<bool> {
    match field {
        Field::Ctl | Field::Send | Field::FuseId => Some(true),
        Field::Model if one.model.is_some() => Some(true),
        Field::Cwd if one.cwd.is_some() => Some(true),
        _ if one.server_id.is_none() => Some(false),
        Field::Created | Field::Id | Field::CreatedAt | Field::UpdatedAt => Some(true),
        _ => None,
    }
}
