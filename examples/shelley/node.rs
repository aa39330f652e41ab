//! The places of the tree: what there is, under which name, inode and path, and for how long the kernel may believe it.

use std::{collections::HashMap, sync::Arc, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

/// For what is not there.
pub(crate) const NEGATIVE: Duration = Duration::from_secs(1);

pub(crate) const MODELS: Duration = Duration::from_secs(300);

const CONVERSATION: Duration = Duration::from_secs(10);

/// A file, directory or link. A conversation goes by its number here, a message by its place in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    Root,
    Readme,
    New,
    Models,
    DefaultModel,
    Model(Arc<str>),
    OfModel(Arc<str>, OfModel),
    Conversations,
    /// A server's id, or a slug: a link.
    Alias(Arc<str>),
    Latest,
    LatestAt(u32),
    Conversation(u32),
    Field(u32, Field),
    Messages(u32),
    Count(u32),
    AllMarkdown(u32),
    AllJson(u32),
    Last(u32),
    LastOf(u32, u32),
    LastAt(u32, u32, u32),
    Message(u32, u32),
    Part(u32, u32, Part),
    /// A value in the data of a message, by the names on the way to it.
    Data(u32, u32, Arc<str>),
}

/// What a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OfModel {
    Id,
    Ready,
    New,
    Clone,
    Start,
}

/// What a conversation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Ctl,
    Send,
    FuseId,
    Created,
    Id,
    Slug,
    CreatedAt,
    UpdatedAt,
    Model,
    Cwd,
    Archived,
    Working,
    Cancel,
}

/// What a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Content,
    MessageId,
    ConversationId,
    SequenceId,
    Type,
    CreatedAt,
}

pub(crate) const OF_MODEL: [(&str, OfModel); 3] = [
    ("id", OfModel::Id),
    ("new", OfModel::New),
    ("ready", OfModel::Ready),
];

pub(crate) const OF_NEW: [(&str, OfModel); 2] =
    [("clone", OfModel::Clone), ("start", OfModel::Start)];

pub(crate) const FIELDS: [(&str, Field); 13] = [
    ("archived", Field::Archived),
    ("cancel", Field::Cancel),
    ("created", Field::Created),
    ("created_at", Field::CreatedAt),
    ("ctl", Field::Ctl),
    ("cwd", Field::Cwd),
    ("fuse_id", Field::FuseId),
    ("id", Field::Id),
    ("model", Field::Model),
    ("send", Field::Send),
    ("slug", Field::Slug),
    ("updated_at", Field::UpdatedAt),
    ("working", Field::Working),
];

pub(crate) const PARTS: [(&str, Part); 6] = [
    ("content.md", Part::Content),
    ("conversation_id", Part::ConversationId),
    ("created_at", Part::CreatedAt),
    ("message_id", Part::MessageId),
    ("sequence_id", Part::SequenceId),
    ("type", Part::Type),
];

/// Finds the entry of this name in one of the tables above.
pub(crate) fn named<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    let found = table.iter().find(|(other, _)| *other == name);
    found.map(|(_, what)| *what)
}

fn name_of<'a, T: PartialEq>(table: &[(&'a str, T)], what: &T) -> &'a str {
    let found = table.iter().find(|(_, other)| other == what);
    found.map_or("?", |(name, _)| name)
}

/// The name of a message's directory.
pub(crate) fn message_name(at: usize, kind: &str) -> String {
    format!("{at:03}-{kind}")
}

impl Node {
    /// How long the kernel may trust what it was told of it.
    pub(crate) fn lifetime(&self) -> Duration {
        match self {
            Self::Models | Self::DefaultModel | Self::Model(_) | Self::OfModel(..) => MODELS,
            Self::Alias(_) | Self::Conversation(_) | Self::Field(..) => CONVERSATION,
            Self::LatestAt(_) | Self::LastAt(..) => CONVERSATION,
            _ => HOUR,
        }
    }

    pub(crate) fn is_link(&self) -> bool {
        matches!(
            self,
            Self::New
                | Self::DefaultModel
                | Self::Alias(_)
                | Self::LatestAt(_)
                | Self::LastAt(..)
                | Self::Field(_, Field::Model | Field::Cwd)
        )
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(
            self,
            Self::Root
                | Self::Models
                | Self::Model(_)
                | Self::OfModel(_, OfModel::New)
                | Self::Conversations
                | Self::Latest
                | Self::Conversation(_)
                | Self::Messages(_)
                | Self::Last(_)
                | Self::LastOf(..)
                | Self::Message(..)
        )
    }

    /// Where it is in the mount; `local` knows the conversation's name, `kind` a message's type.
    pub(crate) fn path(
        &self,
        local: impl Fn(u32) -> String,
        kind: impl Fn(u32, u32) -> String,
    ) -> String {
        let conversation = |n: u32| format!("/conversation/{}", local(n));
        let message = |n, at: u32| {
            let name = message_name(at as usize, &kind(n, at));
            format!("{}/messages/{name}", conversation(n))
        };
        match self {
            Self::Root => "/".to_owned(),
            Self::Readme => "/README.md".to_owned(),
            Self::New => "/new".to_owned(),
            Self::Models => "/model".to_owned(),
            Self::DefaultModel => "/model/default".to_owned(),
            Self::Model(name) => format!("/model/{name}"),
            Self::OfModel(name, what @ (OfModel::Clone | OfModel::Start)) => {
                format!("/model/{name}/new/{}", name_of(&OF_NEW, what))
            }
            Self::OfModel(name, what) => format!("/model/{name}/{}", name_of(&OF_MODEL, what)),
            Self::Conversations => "/conversation".to_owned(),
            Self::Alias(name) => format!("/conversation/{name}"),
            Self::Latest => "/conversation/last".to_owned(),
            Self::LatestAt(at) => format!("/conversation/last/{at}"),
            Self::Conversation(n) => conversation(*n),
            Self::Field(n, field) => format!("{}/{}", conversation(*n), name_of(&FIELDS, field)),
            Self::Messages(n) => conversation(*n) + "/messages",
            Self::Count(n) => conversation(*n) + "/messages/count",
            Self::AllMarkdown(n) => conversation(*n) + "/messages/all.md",
            Self::AllJson(n) => conversation(*n) + "/messages/all.json",
            Self::Last(n) => conversation(*n) + "/messages/last",
            Self::LastOf(n, of) => format!("{}/messages/last/{of}", conversation(*n)),
            Self::LastAt(n, of, at) => format!("{}/messages/last/{of}/{at}", conversation(*n)),
            Self::Message(n, at) => message(*n, *at),
            Self::Part(n, at, part) => format!("{}/{}", message(*n, *at), name_of(&PARTS, part)),
            Self::Data(n, at, names) => format!("{}/{names}", message(*n, *at)),
        }
    }
}

/// Which number stands for which node. None is ever used again for another.
#[derive(Debug)]
pub(crate) struct Inodes {
    nodes: Vec<Node>,
    numbers: HashMap<Node, u64>,
}

impl Default for Inodes {
    // The root is number one.
    fn default() -> Self {
        let mut inodes = Self {
            nodes: Vec::new(),
            numbers: HashMap::new(),
        };
        inodes.number(&Node::Root);
        inodes
    }
}

impl Inodes {
    pub(crate) fn number(&mut self, node: &Node) -> u64 {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        self.nodes.push(node.clone());
        let number = self.nodes.len() as u64;
        self.numbers.insert(node.clone(), number);
        number
    }

    pub(crate) fn node(&self, number: u64) -> Option<Node> {
        let at = usize::try_from(number.checked_sub(1)?).ok()?;
        self.nodes.get(at).cloned()
    }
}
