//! What the file system knows of conversations without asking: their names here, and what never changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::{Conversation, Message, Transcript};
use crate::store;

/// The conversations, by number. None is ever forgotten: the kernel may still ask for it.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Vec<One>>);

/// One directory under `conversation`.
#[derive(Clone, Debug, Default)]
pub(crate) struct One {
    pub(crate) name: String,
    /// None until something was sent.
    pub(crate) server_id: Option<String>,
    pub(crate) slug: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) cwd: Option<String>,
    /// Deleted, or known by another number.
    is_gone: bool,
    /// Messages do not change.
    messages: Vec<Arc<Message>>,
}

impl Known {
    /// A new one, under a name of its own.
    pub(crate) fn allocate(&self, model: Option<&str>) -> String {
        let mut all = self.lock();
        let one = One {
            name: new_name(&all),
            model: model.map(str::to_owned),
            ..One::default()
        };
        let name = one.name.clone();
        all.push(one);
        name
    }

    /// Finds a conversation by its name here; an id that nobody used yet is a new one.
    pub(crate) fn by_name(&self, name: &str) -> Option<u32> {
        let mut all = self.lock();
        let found = find(&all, |one| one.name == name);
        let is_id = (4..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
        found.or_else(|| {
            is_id.then(|| {
                all.push(One {
                    name: name.to_owned(),
                    ..One::default()
                });
                all.len() as u32 - 1
            })
        })
    }

    /// Finds the name here of what the server calls by this id or slug.
    pub(crate) fn by_alias(&self, alias: &str) -> Option<String> {
        let all = self.lock();
        let is_alias = |it: &Option<String>| it.as_deref() == Some(alias);
        let found = find(&all, |one| is_alias(&one.server_id) || is_alias(&one.slug))?;
        Some(all.get(found as usize)?.name.clone())
    }

    pub(crate) fn one(&self, n: u32) -> Option<One> {
        let all = self.lock();
        all.get(n as usize).filter(|one| !one.is_gone).cloned()
    }

    pub(crate) fn change(&self, n: u32, change: impl FnOnce(&mut One)) {
        if let Some(one) = self.lock().get_mut(n as usize) {
            change(one);
        }
    }

    pub(crate) fn forget(&self, n: u32) {
        self.change(n, |one| one.is_gone = true);
    }

    /// Notes which conversation of the server's this is. It may have been listed already, as one that others began.
    pub(crate) fn created(&self, n: u32, server_id: &str) {
        let mut all = self.lock();
        for (at, one) in all.iter_mut().enumerate() {
            if at == n as usize {
                one.server_id = Some(server_id.to_owned());
            } else if one.server_id.as_deref() == Some(server_id) {
                one.is_gone = true;
            }
        }
    }

    /// Takes over what the server lists; one that is not known gets a name.
    pub(crate) fn adopt(&self, listed: &Conversation) -> (u32, String) {
        let mut all = self.lock();
        let id = Some(&listed.conversation_id);
        let n = find(&all, |one| one.server_id.as_ref() == id).unwrap_or_else(|| {
            let name = new_name(&all);
            all.push(One {
                name,
                server_id: id.cloned(),
                ..One::default()
            });
            all.len() as u32 - 1
        });
        name_only(&mut all, n, listed.slug.as_ref());
        let one = &mut all[n as usize];
        one.model = listed.model.clone().or(one.model.take());
        one.cwd = listed.cwd.clone().or(one.cwd.take());
        (n, one.name.clone())
    }

    /// Forgets the slugs of those that the server has no more.
    pub(crate) fn only(&self, is_listed: impl Fn(&str) -> bool) {
        for one in self.lock().iter_mut() {
            if !one.server_id.as_deref().is_some_and(&is_listed) {
                one.slug = None;
            }
        }
    }

    pub(crate) fn learn(&self, n: u32, transcript: &Transcript) {
        name_only(&mut self.lock(), n, transcript.conversation.slug.as_ref());
        self.change(n, |one| {
            one.model = transcript.conversation.model.clone().or(one.model.take());
            let new = transcript.messages.iter().skip(one.messages.len());
            one.messages.extend(new.cloned().map(Arc::new));
        });
    }

    pub(crate) fn message(&self, n: u32, at: u32) -> Option<Arc<Message>> {
        let all = self.lock();
        all.get(n as usize)?.messages.get(at as usize).cloned()
    }

    // Never held while something is waited for.
    fn lock(&self) -> MutexGuard<'_, Vec<One>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slug is one conversation's: whoever had it before was deleted or renamed.
fn name_only(all: &mut [One], n: u32, slug: Option<&String>) {
    for (at, one) in all.iter_mut().enumerate() {
        if at == n as usize {
            one.slug = slug.cloned();
        } else if one.slug.as_ref() == slug {
            one.slug = None;
        }
    }
}

fn find(all: &[One], is_it: impl Fn(&One) -> bool) -> Option<u32> {
    let found = all.iter().position(|one| !one.is_gone && is_it(one));
    found.map(|at| at as u32)
}

fn new_name(all: &[One]) -> String {
    loop {
        let name = format!("{:08x}", store::random() as u32);
        if !all.iter().any(|one| one.name == name) {
            return name;
        }
    }
}
