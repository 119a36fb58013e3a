//! Where the broker is, and who we are.

use crate::{client::ClientError, state::now};
use hutong_proto::{
    Issuer, TraceContext,
    api::{
        admin_service_client::AdminServiceClient, query_service_client::QueryServiceClient,
        report_service_client::ReportServiceClient,
    },
    metadata,
};
use std::{fmt, time::Duration};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What the broker may send before it waits for us: deliveries are up to about 1 MiB.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// As whom a connection comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Platform(Issuer),
    Operator(String),
    Auditor(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Platform(code) => write!(f, "platform/{code}"),
            Identity::Operator(name) => write!(f, "operator/{name}"),
            Identity::Auditor(name) => write!(f, "auditor/{name}"),
        }
    }
}

impl std::str::FromStr for Identity {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once('/') {
            Some(("platform", code)) => code.parse().map(Identity::Platform),
            Some(("operator", name)) if !name.is_empty() => Ok(Identity::Operator(name.to_owned())),
            Some(("auditor", name)) if !name.is_empty() => Ok(Identity::Auditor(name.to_owned())),
            _ => Err(format!(
                "{s:?} is no identity; expected platform/CODE, operator/NAME or auditor/NAME"
            )),
        }
    }
}

/// A broker and an identity.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Such as `http://127.0.0.1:7400`.
    pub address: String,
    pub identity: Identity,
    /// What calls are part of.
    trace: Option<TraceContext>,
}

impl Endpoint {
    pub fn new(address: impl Into<String>, identity: Identity) -> Endpoint {
        Endpoint {
            address: address.into(),
            identity,
            trace: None,
        }
    }

    /// Calls say that they are part of this.
    #[must_use]
    pub fn traced(self, trace: Option<TraceContext>) -> Endpoint {
        Endpoint { trace, ..self }
    }

    /// A connection of its own, made when it is first used.
    pub fn channel(&self) -> Result<Channel, ClientError> {
        let wrong = |why: String| ClientError::Address {
            address: self.address.clone(),
            why,
        };
        let endpoint =
            Channel::from_shared(self.address.clone()).map_err(|e| wrong(e.to_string()))?;
        // What has no scheme would only be found out when it connects, and look like a broker that is away.
        match endpoint.uri().scheme_str() {
            Some("http") if endpoint.uri().host().is_some() => {}
            Some("https") => return Err(wrong("TLS is not built in yet".to_owned())),
            _ => return Err(wrong("it does not begin with http://".to_owned())),
        }
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy())
    }

    /// Adds our identity to a request.
    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(metadata::IDENTITY, self.metadata()?);
        request
            .metadata_mut()
            .insert(metadata::CLOCK, now().0.into());
        if let Some(parent) = self.trace_parent() {
            request
                .metadata_mut()
                .insert(metadata::TRACE_PARENT, parent);
        }
        Ok(request)
    }

    fn trace_parent(&self) -> Option<MetadataValue<Ascii>> {
        self.trace?.to_trace_parent().parse().ok()
    }

    fn identify(&self) -> Result<Identify, ClientError> {
        Ok(Identify {
            identity: self.metadata()?,
            trace_parent: self.trace_parent(),
        })
    }

    fn metadata(&self) -> Result<MetadataValue<Ascii>, ClientError> {
        let text = self.identity.to_string();
        text.parse().map_err(|_| ClientError::Address {
            address: self.address.clone(),
            why: format!("the identity {text:?} has characters other than ASCII"),
        })
    }
}

/// Puts the identity into every call, and what it is part of.
#[derive(Clone, Debug)]
pub struct Identify {
    identity: MetadataValue<Ascii>,
    trace_parent: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Identify {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let said = request.metadata_mut();
        said.insert(metadata::IDENTITY, self.identity.clone());
        if let Some(parent) = &self.trace_parent {
            said.insert(metadata::TRACE_PARENT, parent.clone());
        }
        Ok(request)
    }
}

pub type QueryClient = QueryServiceClient<InterceptedService<Channel, Identify>>;
pub type ReportClient = ReportServiceClient<InterceptedService<Channel, Identify>>;
pub type AdminClient = AdminServiceClient<InterceptedService<Channel, Identify>>;

/// For questions about one entity or one delta.
pub fn query(endpoint: &Endpoint) -> Result<QueryClient, ClientError> {
    Ok(QueryServiceClient::with_interceptor(
        endpoint.channel()?,
        endpoint.identify()?,
    ))
}

/// For operators.
pub fn admin(endpoint: &Endpoint) -> Result<AdminClient, ClientError> {
    Ok(AdminServiceClient::with_interceptor(
        endpoint.channel()?,
        endpoint.identify()?,
    ))
}

/// For what a connector says of itself.
pub fn report(endpoint: &Endpoint) -> Result<ReportClient, ClientError> {
    Ok(ReportServiceClient::with_interceptor(
        endpoint.channel()?,
        endpoint.identify()?,
    ))
}
