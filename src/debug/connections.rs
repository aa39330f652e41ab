//! Serves each connection on its own, and not for ever: whoever comes and says nothing, or takes nothing, must not
//! use up what the application has of file descriptors and memory.

use std::{sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{sync::Semaphore, time::timeout};

/// At once; more wait to be accepted.
const MOST: usize = 32;

/// For the head of a request.
const HEAD: Duration = Duration::from_secs(5);

/// For all of it: an answer is made within 2 s, and may then have to go a long way.
const WHOLE: Duration = Duration::from_secs(30);

/// Answers one request on each connection.
pub(super) async fn serve<L>(mut listener: L, app: Router)
where
    L: Listener<Io: 'static>,
{
    let free = Arc::new(Semaphore::new(MOST));
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(app.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // Of whoever broke off nothing is to be told.
            let _ = timeout(WHOLE, connection).await;
            drop(permit);
        });
    }
}
