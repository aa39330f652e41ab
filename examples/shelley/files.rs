//! What the file system asks of the server, and what it has the server do.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use inflight::Tracker;
use inflight::fuse::fuser::Errno;

use crate::api::{Conversation, Model, Say, Transcript};
use crate::client::{Client, Failed};
use crate::fetch::Fetches;
use crate::known::{Known, One};
use crate::node::{MODELS, Node};

/// Why something is not to be had.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    pub(crate) why: Option<String>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, why: None }
    }
}

impl From<Failed> for Refused {
    fn from(failed: Failed) -> Self {
        let errno = match failed.not_found {
            true => Errno::ENOENT,
            false => Errno::EIO,
        };
        Self {
            errno,
            why: Some(failed.to_string()),
        }
    }
}

type Models = Arc<Vec<Model>>;

impl Refused {
    /// The errno, after telling the op why: nobody else will, `echo` does not look at what close(2) says.
    pub(crate) fn told(self) -> Errno {
        if let Some(why) = self.why {
            inflight::fail(why);
        }
        self.errno
    }
}

/// The tree over one server.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) api: Client,
    pub(crate) known: Known,
    /// Where a conversation begins that was told nothing else.
    cwd: PathBuf,
    transcripts: Fetches<Transcript>,
    lists: Fetches<Vec<Conversation>>,
    models: Mutex<Option<(Instant, Models)>>,
    models_lifetime: Duration,
}

impl Files {
    /// `is_fresh`: ask the server again each time.
    pub(crate) fn new(api: Client, cwd: PathBuf, is_fresh: bool, tracker: &Tracker) -> Self {
        Self {
            api,
            known: Known::default(),
            cwd,
            transcripts: Fetches::new(tracker),
            lists: Fetches::new(tracker),
            models: Mutex::default(),
            models_lifetime: if is_fresh { Duration::ZERO } else { MODELS },
        }
    }

    pub(crate) fn path(&self, node: &Node) -> String {
        let local = |n| self.known.one(n).map_or("?".to_owned(), |one| one.name);
        let kind = |n, at| {
            self.known
                .message(n, at)
                .map_or("?".to_owned(), |it| it.kind.clone())
        };
        node.path(local, kind)
    }

    pub(crate) fn one(&self, n: u32) -> Result<One, Refused> {
        self.known.one(n).ok_or(Errno::ENOENT.into())
    }

    pub(crate) async fn models(&self) -> Result<Models, Refused> {
        let kept = self
            .models
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((since, models)) = kept
            && since.elapsed() < self.models_lifetime
        {
            return Ok(models);
        }
        let models = Arc::new(self.api.models().await?);
        let kept = Some((Instant::now(), Arc::clone(&models)));
        *self.models.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(models)
    }

    /// Says something; the first message begins the conversation.
    pub(crate) async fn send(&self, n: u32, message: Vec<u8>) -> Result<(), Refused> {
        let message = String::from_utf8(message).map_err(|_| Errno::EINVAL)?;
        let one = self.one(n)?;
        if let Some(id) = one.server_id {
            self.api.chat(&id, message).await?;
            self.changed(&id);
            return Ok(());
        }
        let cwd = one.cwd.unwrap_or_else(|| self.cwd.display().to_string());
        let say = Say {
            message,
            model: one.model,
            cwd: Some(cwd.clone()),
        };
        let begun = self.api.begin(say).await?;
        let id = begun.conversation_id;
        let id = id.ok_or_else(|| Failed::new("the server gave no id"))?;
        self.known.change(n, |one| one.cwd = Some(cwd));
        self.known.created(n, &id);
        self.changed(&id);
        Ok(())
    }

    /// Takes `model=X cwd=/p`, as long as nothing was sent.
    pub(crate) async fn set(&self, n: u32, text: Vec<u8>) -> Result<(), Refused> {
        if self.one(n)?.server_id.is_some() {
            return Err(Errno::EROFS.into());
        }
        let text = String::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let (mut model, mut cwd) = (None, None);
        for pair in text.split_whitespace() {
            match pair.split_once('=') {
                Some(("model", name)) => model = Some(name.to_owned()),
                Some(("cwd", path)) if path.starts_with('/') => cwd = Some(path.to_owned()),
                _ => return Err(Errno::EINVAL.into()),
            }
        }
        if let Some(name) = &model
            && !self
                .models()
                .await?
                .iter()
                .any(|it| it.id == *name && it.ready)
        {
            return Err(Errno::EINVAL.into());
        }
        self.known.change(n, |one| {
            one.model = model.or(one.model.take());
            one.cwd = cwd.or(one.cwd.take());
        });
        Ok(())
    }

    /// Has the server `cancel`, `archive`, `unarchive` or `delete` a conversation.
    pub(crate) async fn act(&self, n: u32, what: &str) -> Result<(), Refused> {
        if let Some(id) = self.one(n)?.server_id {
            self.api.act(&id, what).await?;
            self.changed(&id);
        } else if what != "delete" {
            return Err(Errno::ENOENT.into());
        }
        if what == "delete" {
            self.known.forget(n);
        }
        Ok(())
    }

    /// What was asked before this moment is not an answer to who asks from now on.
    fn changed(&self, server_id: &str) {
        self.transcripts.forget(server_id);
        self.lists.forget("conversations");
        self.lists.forget("archived");
    }

    pub(crate) async fn transcript(&self, n: u32) -> Result<Arc<Transcript>, Refused> {
        let id = self.one(n)?.server_id.ok_or(Errno::ENOENT)?;
        let api = self.api.clone();
        let asked = id.clone();
        let ask = || async move { api.transcript(&asked).await };
        let transcript = self.transcripts.get(&id, ask).await?;
        self.known.learn(n, &transcript);
        Ok(transcript)
    }

    /// The row of a conversation in one of the server's lists: only these say whether it is at work.
    pub(crate) async fn row(&self, n: u32) -> Result<Conversation, Refused> {
        let id = self.one(n)?.server_id.ok_or(Errno::ENOENT)?;
        let api = self.api.clone();
        let ask = || async move { api.conversations().await };
        let listed = self.lists.get("conversations", ask).await?;
        if let Some(row) = listed.iter().find(|row| row.conversation_id == id) {
            self.known.adopt(row);
            return Ok(row.clone());
        }
        let api = self.api.clone();
        let ask = || async move { api.archived().await };
        let archived = self.lists.get("archived", ask).await?;
        let row = archived.iter().find(|row| row.conversation_id == id);
        let row = row.ok_or(Errno::ENOENT)?;
        Ok(Conversation {
            archived: true,
            ..row.clone()
        })
    }

    /// All that is not archived, as number, name and row, the newest first. All that the server has is known then.
    pub(crate) async fn list(&self) -> Result<Vec<(u32, String, Conversation)>, Refused> {
        let listed = self.api.conversations().await?;
        let archived = self.api.archived().await?;
        for row in &archived {
            self.known.adopt(row);
        }
        let both = || listed.iter().chain(&archived);
        self.known
            .only(|id| both().any(|row| row.conversation_id == id));
        let is_archived = |row: &Conversation| {
            archived
                .iter()
                .any(|it| it.conversation_id == row.conversation_id)
        };
        let shown = listed.into_iter().filter(|row| !is_archived(row));
        let adopted = shown.map(|row| {
            let (n, name) = self.known.adopt(&row);
            (n, name, row)
        });
        Ok(adopted.collect())
    }
}
