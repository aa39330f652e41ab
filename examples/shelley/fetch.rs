//! One request for all who want the same: no lock is held while it is on its way.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use inflight::{FutureExt, Op, Tracker};
use tokio::sync::watch;

use crate::client::Failed;

type Answer<T> = Option<Result<Arc<T>, Failed>>;

/// The requests that are on their way, by what they ask for.
#[derive(Debug)]
pub(crate) struct Fetches<T> {
    tracker: Tracker,
    running: Arc<Mutex<HashMap<String, Fetch<T>>>>,
}

#[derive(Debug)]
struct Fetch<T> {
    op: Op,
    done: watch::Receiver<Answer<T>>,
}

impl<T> Clone for Fetch<T> {
    fn clone(&self) -> Self {
        Self {
            op: self.op.clone(),
            done: self.done.clone(),
        }
    }
}

impl<T: Send + Sync + 'static> Fetches<T> {
    pub(crate) fn new(tracker: &Tracker) -> Self {
        Self {
            tracker: tracker.clone(),
            running: Arc::default(),
        }
    }

    /// Asks, or waits for the answer to whoever asked before.
    pub(crate) async fn get<F>(&self, key: &str, ask: impl FnOnce() -> F) -> Result<Arc<T>, Failed>
    where
        F: Future<Output = Result<T, Failed>> + Send + 'static,
    {
        let mut fetch = lock(&self.running)
            .entry(key.to_owned())
            .or_insert_with(|| self.begin(key, ask()))
            .clone();
        let done = fetch.done.wait_for(Option::is_some);
        let done = done.waiting_for(&fetch.op).await;
        done.ok()
            .and_then(|done| done.clone())
            .unwrap_or_else(|| Err(Failed::new("the fetch was given up")))
    }

    /// Whoever asks from now on gets an answer that is newer than this moment.
    pub(crate) fn forget(&self, key: &str) {
        lock(&self.running).remove(key);
    }

    /// Under an op of its own: whoever is first may be killed, the others still wait.
    fn begin(
        &self,
        key: &str,
        asked: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Fetch<T> {
        let op = self.tracker.begin(format!("fetch {key}"));
        let (tell, done) = watch::channel(None);
        let (running, key, own) = (Arc::clone(&self.running), key.to_owned(), done.clone());
        let answer = async move {
            let answer = asked.await.map(Arc::new);
            let mut running = lock(&running);
            let is_own = |fetch: &Fetch<T>| fetch.done.same_channel(&own);
            if running.get(&key).is_some_and(is_own) {
                running.remove(&key);
            }
            drop(running);
            tell.send_replace(Some(answer));
        };
        tokio::spawn(answer.in_op(&op));
        Fetch { op, done }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
