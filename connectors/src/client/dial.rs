//! How streams to a broker are opened: over the network, or, in a simulation, through a network that is
//! made up.

use crate::client::{ClientError, Endpoint};
use hutong_proto::{
    api::stream::{
        publish_service_client::PublishServiceClient,
        subscribe_service_client::SubscribeServiceClient,
    },
    frame::Frame,
    limits,
};
use std::{fmt, future::Future, pin::Pin, sync::Arc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// What comes from the broker, once it took the call.
pub type Opening = Pin<Box<dyn Future<Output = Result<Streaming<Frame>, ClientError>> + Send>>;

/// Opens streams. Each call is one try.
pub trait Dial: Send + Sync {
    fn publish(&self, endpoint: &Endpoint, requests: ReceiverStream<Frame>) -> Opening;
    fn subscribe(&self, endpoint: &Endpoint, requests: ReceiverStream<Frame>) -> Opening;
}

/// Which way; over the network unless somebody says otherwise.
#[derive(Clone)]
pub struct Dialer(pub Arc<dyn Dial>);

impl Default for Dialer {
    fn default() -> Self {
        Dialer(Arc::new(Network))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

struct Network;

impl Dial for Network {
    fn publish(&self, endpoint: &Endpoint, requests: ReceiverStream<Frame>) -> Opening {
        let endpoint = endpoint.clone();
        Box::pin(async move {
            let mut client = PublishServiceClient::new(endpoint.channel()?)
                // An ack that refuses each delta of a large batch is larger than the batch.
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
            let request = endpoint.request(requests)?;
            Ok(client.publish(request).await?.into_inner())
        })
    }

    fn subscribe(&self, endpoint: &Endpoint, requests: ReceiverStream<Frame>) -> Opening {
        let endpoint = endpoint.clone();
        Box::pin(async move {
            let mut client = SubscribeServiceClient::new(endpoint.channel()?)
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
            let request = endpoint.request(requests)?;
            Ok(client.subscribe(request).await?.into_inner())
        })
    }
}
