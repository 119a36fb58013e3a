//! NATS JetStream: one server, one file stream, one replica, synced before each ack. A message is a
//! batch; receivers have ordered push consumers, its fastest kind, which need no acks.

use crate::{
    broker::free_port,
    systems::{Ack, Came, Failure, Receiver, Seen, Sender, System},
};
use async_nats::{
    Client,
    jetstream::{
        self, Context,
        consumer::{DeliverPolicy, push},
        context::ContextBuilder,
        stream,
    },
};
use futures_util::{StreamExt, future::BoxFuture};
use hutong_connectors::client::EncodedBatch;
use hutong_proto::{Issuer, Lane};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const STREAM: &str = "deltas";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const ACKS_IN_FLIGHT_MAX: usize = 4096;

pub struct JetStream {
    child: Child,
    url: String,
    _dir: TempDir,
}

/// `HUTONG_NATS_SERVER`, which `./dev bench` sets, or whatever is in the path.
pub fn program() -> PathBuf {
    std::env::var_os("HUTONG_NATS_SERVER").map_or("nats-server".into(), PathBuf::from)
}

impl JetStream {
    pub async fn start() -> Result<JetStream, Failure> {
        let dir = TempDir::new()?;
        let (port, http) = (free_port()?, free_port()?);
        let config = dir.path().join("nats.conf");
        fs::write(
            &config,
            format!(
                "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{http}\"\nmax_payload: 4MB\n\
                 max_pending: 256MB\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always, max_file: 64GB }}\n",
                dir.path().join("data").display()
            ),
        )?;
        let program = program();
        let child = Command::new(&program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("nats.log"))?)
            .spawn()
            .map_err(|error| {
                format!(
                    "cannot start {}: {error}; `./dev bench` installs it, or set HUTONG_NATS_SERVER",
                    program.display()
                )
            })?;
        let server = JetStream {
            child,
            url: format!("nats://127.0.0.1:{port}"),
            _dir: dir,
        };
        server.check_synced(http).await?;
        let context = jetstream::new(server.connect().await?);
        let stream = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![format!("{STREAM}.>")],
            storage: stream::StorageType::File,
            num_replicas: 1,
            ..stream::Config::default()
        };
        context.create_stream(stream).await?;
        Ok(server)
    }

    /// The server itself says that it syncs: what a configuration file says may be misread.
    async fn check_synced(&self, http: u16) -> Result<(), Failure> {
        let begun = Instant::now();
        let varz = loop {
            match crate::broker::get(&format!("127.0.0.1:{http}"), "/varz").await {
                Some(answer) => break answer,
                None if begun.elapsed() > START_TIMEOUT => {
                    return Err("nats-server does not answer".into());
                }
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let body = varz.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let varz: Value = serde_json::from_str(body)?;
        match varz["jetstream"]["config"]["sync_always"].as_bool() {
            Some(true) => Ok(()),
            _ => Err("nats-server does not say that it syncs always: not comparable".into()),
        }
    }

    async fn connect(&self) -> Result<Client, Failure> {
        Ok(async_nats::connect(&self.url).await?)
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about an error here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl System for JetStream {
    fn sender(
        &self,
        issuer: Issuer,
        lane: Lane,
        _batch: u32,
    ) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>> {
        Box::pin(async move {
            let context = ContextBuilder::new()
                .timeout(Duration::from_secs(60))
                .max_ack_inflight(ACKS_IN_FLIGHT_MAX)
                .build(self.connect().await?);
            let subject = format!("{STREAM}.{issuer}.{}", lane.name());
            Ok(Box::new(JetStreamSender { context, subject }) as Box<dyn Sender>)
        })
    }

    fn receiver(&self, _issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>> {
        Box::pin(async move {
            let client = self.connect().await?;
            let context = jetstream::new(client.clone());
            let stream = context.get_stream(STREAM).await?;
            let config = push::OrderedConfig {
                deliver_subject: client.new_inbox(),
                deliver_policy: DeliverPolicy::All,
                ..push::OrderedConfig::default()
            };
            let consumer = stream.create_consumer(config).await?;
            let messages = consumer.messages().await?;
            Ok(Box::new(JetStreamReceiver(messages)) as Box<dyn Receiver>)
        })
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.child.id()]
    }
}

struct JetStreamSender {
    context: Context,
    subject: String,
}

impl Sender for JetStreamSender {
    fn send(&mut self, batch: EncodedBatch) -> BoxFuture<'_, Result<Ack, Failure>> {
        Box::pin(async move {
            let ack = self
                .context
                .publish(self.subject.clone(), batch.body)
                .await?;
            Ok(Box::pin(async move {
                ack.await?;
                Ok(())
            }) as Ack)
        })
    }
}

struct JetStreamReceiver(push::Ordered);

impl Receiver for JetStreamReceiver {
    fn receive<'a>(&'a mut self, came: &'a mut Came) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let message = self.0.next().await.ok_or("the consumer ended")??;
            came.batch(|| Seen::in_batch(&message.payload))
        })
    }
}
