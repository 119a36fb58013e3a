//! Redis Streams: one server, its append-only file synced before each answer (`appendfsync always`), one
//! stream, an entry a batch. Senders pipeline; receivers wait in `XREAD`, from the first entry on.

use crate::{
    broker::free_port,
    systems::{Ack, Came, Failure, Receiver, Seen, Sender, System},
};
use futures_util::future::BoxFuture;
use hutong_connectors::client::EncodedBatch;
use hutong_proto::{Issuer, Lane};
use redis::{AsyncConnectionConfig, Client, Value, aio::MultiplexedConnection};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

const STREAM: &str = "deltas";
/// Entries that the stream keeps, about: all of them are in memory, with batches of 256 some eight gigabytes (66,000 took 2.2). A
/// minute without a bound would need more than small machines have.
const KEPT: u32 = 1 << 18;
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a read waits for entries before it asks anew.
const BLOCK_MS: u64 = 500;
/// Entries in one answer; with more, a receiver waits longer for the first of them.
const READ_MAX: usize = 64;

pub struct Redis {
    child: Child,
    url: String,
    _dir: TempDir,
}

/// `HUTONG_REDIS_SERVER`, or whatever is in the path.
pub fn program() -> PathBuf {
    std::env::var_os("HUTONG_REDIS_SERVER").map_or("redis-server".into(), PathBuf::from)
}

impl Redis {
    pub async fn start() -> Result<Redis, Failure> {
        let dir = TempDir::new()?;
        let port = free_port()?;
        let config = dir.path().join("redis.conf");
        fs::write(
            &config,
            format!(
                "bind 127.0.0.1\nport {port}\ndir {}\nsave \"\"\nappendonly yes\nappendfsync always\n\
                 auto-aof-rewrite-percentage 0\nclient-output-buffer-limit normal 0 0 0\n",
                dir.path().display()
            ),
        )?;
        let program = program();
        let child = Command::new(&program)
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.path().join("redis.log"))?)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!(
                    "cannot start {}: {error}; `./dev bench` installs it, or set HUTONG_REDIS_SERVER",
                    program.display()
                )
            })?;
        let server = Redis {
            child,
            url: format!("redis://127.0.0.1:{port}/"),
            _dir: dir,
        };
        server.check_synced().await?;
        Ok(server)
    }

    /// The server itself says that it syncs: what a configuration file says may be misread.
    async fn check_synced(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut connection = loop {
            match self.connect().await {
                Ok(connection) => break connection,
                Err(error) if begun.elapsed() > START_TIMEOUT => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        for (key, wanted) in [("appendonly", "yes"), ("appendfsync", "always")] {
            let answer: Vec<String> = redis::cmd("CONFIG")
                .arg("GET")
                .arg(key)
                .query_async(&mut connection)
                .await?;
            if answer.get(1).map(String::as_str) != Some(wanted) {
                return Err(format!("redis does not say {key} {wanted}: not comparable").into());
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        // A read waits on purpose, and in a surge an answer may take its time.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(4096);
        let client = Client::open(self.url.as_str())?;
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        Ok(connection.await?)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about an error here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl System for Redis {
    fn sender(
        &self,
        _issuer: Issuer,
        _lane: Lane,
        _batch: u32,
    ) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>> {
        Box::pin(async move { Ok(Box::new(RedisSender(self.connect().await?)) as Box<dyn Sender>) })
    }

    fn receiver(&self, _issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>> {
        Box::pin(async move {
            let receiver = RedisReceiver {
                connection: self.connect().await?,
                last: b"0".to_vec(),
            };
            Ok(Box::new(receiver) as Box<dyn Receiver>)
        })
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.child.id()]
    }
}

struct RedisSender(MultiplexedConnection);

impl Sender for RedisSender {
    fn send(&mut self, batch: EncodedBatch) -> BoxFuture<'_, Result<Ack, Failure>> {
        let connection = self.0.clone();
        Box::pin(async move {
            // A task of its own, so that it is on its way before anybody waits for its answer.
            let sent = AbortOnDropHandle::new(tokio::spawn(async move {
                let mut connection = connection;
                let mut add = redis::cmd("XADD");
                add.arg(STREAM).arg("MAXLEN").arg("~").arg(KEPT);
                add.arg("*").arg("b").arg(&batch.body[..]);
                connection.send_packed_command(&add).await
            }));
            Ok(Box::pin(async move {
                match sent.await?? {
                    Value::BulkString(_) => Ok(()),
                    other => Err(format!("XADD answers {other:?}").into()),
                }
            }) as Ack)
        })
    }
}

struct RedisReceiver {
    connection: MultiplexedConnection,
    /// The last entry that came.
    last: Vec<u8>,
}

impl Receiver for RedisReceiver {
    fn receive<'a>(&'a mut self, came: &'a mut Came) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT").arg(READ_MAX).arg("BLOCK").arg(BLOCK_MS);
            read.arg("STREAMS").arg(STREAM).arg(&self.last[..]);
            let answer = self.connection.send_packed_command(&read).await?;
            for entry in entries(&answer) {
                let (id, body) = entry.ok_or("XREAD answers in another shape")?;
                id.clone_into(&mut self.last);
                came.batch(|| Seen::in_batch(body))?;
            }
            Ok(())
        })
    }
}

/// Id and the one field's value of each entry of the one stream.
fn entries(answer: &Value) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    let stream = items(answer).first();
    let entries = stream.and_then(|stream| items(stream).get(1));
    entries.map_or(&[][..], items).iter().map(|entry| {
        let [Value::BulkString(id), fields] = items(entry) else {
            return None;
        };
        let [_, Value::BulkString(body)] = items(fields) else {
            return None;
        };
        Some((&id[..], &body[..]))
    })
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        _ => &[],
    }
}
