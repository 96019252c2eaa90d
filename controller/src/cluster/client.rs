//! The client of an API server, which notices that nobody is there any more, and says so.
//!
//! A watch is silent while nothing happens. Where packets are dropped on the way it would look the same until it is asked for anew; kube's own client
//! leaves it at that. So the kernel asks for a sign of life, which costs the API server nothing. A watch that the server does not begin looks the same, too.
//!
//! Nothing is tried again here: whoever waits for what a server refuses knows nothing of what has happened meanwhile, and must say that.

use std::{
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use hyper::Request;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
};
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceBuilder, layer::layer_fn};

use super::ClusterError;

/// After so long without a packet the other side is asked for one, and so often again.
const QUIET: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(5);
/// A connection on which nothing was answered for so long is given up, whether something was sent on it or not.
const GONE: Duration = Duration::from_secs(25);

/// How long a new connection may take. After a time without an answer the next try is then soon, and not when the kernel sends its last one again.
const CONNECT: Duration = Duration::from_secs(5);

/// A server answers a watch as soon as it begins it, long before there is something to tell.
pub(super) const BEGINS: Duration = Duration::from_secs(15);

/// As kube makes it of these settings, but for that.
pub(super) fn client(config: Config) -> Result<Client, ClusterError> {
    if config.proxy_url.is_some() {
        let why = "a proxy before the API server is not supported: leave out `proxy-url` in the kubeconfig, and unset HTTPS_PROXY";
        return Err(ClusterError::Config(why.to_owned()));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(QUIET));
    tcp.set_keepalive_interval(Some(AGAIN));
    tcp.set_tcp_user_timeout(Some(GONE));
    let refuse = |error: kube::Error| ClusterError::Config(error.to_string());
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp).map_err(refuse)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(layer_fn(Prompt))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(refuse)?)
        .layer(config.extra_headers_layer().map_err(refuse)?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// A service whose watches begin soon or fail.
pub(super) struct Prompt<S>(pub(super) S);

impl<S> Service<Request<Body>> for Prompt<S>
where
    S: Service<Request<Body>, Future: Send + 'static, Response: 'static, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|field| field == "watch=true"));
        let answer = self.0.call(request);
        Box::pin(async move {
            match is_watch {
                true => timeout(BEGINS, answer).await.map_err(|_| format!("no watch began within {BEGINS:?}"))?,
                false => answer.await,
            }
            .map_err(Into::into)
        })
    }
}
