//! A deployment that runs already and may be broken on purpose. It must say so itself: its broker carries a
//! marker, which whoever plays a drill has to name as well. And it must be empty, because whatever a drill
//! publishes stays there.

use crate::{drill::What, error::ChaosError, text::Text};
use clap::Args;
use hutong_connectors::client::{AdminClient, Endpoint, Identity, admin};
use hutong_proto::api;
use std::{net::SocketAddr, time::Duration};

const CALL_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct Arguments {
    /// Address of a running trial deployment's broker, as it is reached from here. Such a broker listens on
    /// loopback only, so on another machine this is one end of a tunnel: ssh -N -L 7400:127.0.0.1:7400 trial, and
    /// then 127.0.0.1:7400. Its configuration names a marker under [trial].
    #[arg(long, value_name = "ADDRESS", requires = "marker")]
    trial: Option<SocketAddr>,
    /// What that marker is: whoever does not know it cannot mean this deployment.
    #[arg(long, value_name = "NAME", requires = "trial")]
    marker: Option<String>,
    /// A command that kills that broker, which something else starts again, such as
    /// "ssh trial systemctl kill -s KILL hutong-broker". Without it the drill kill-broker is not available.
    #[arg(long, value_name = "COMMAND", requires = "trial")]
    kill_with: Option<String>,
}

impl Arguments {
    pub fn trial(&self) -> Option<Trial> {
        Some(Trial {
            address: self.trial?,
            marker: self.marker.clone()?,
            kill_with: self.kill_with.clone(),
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    pub address: SocketAddr,
    pub marker: String,
    pub kill_with: Option<String>,
}

impl Trial {
    /// Refuses a deployment that is not marked, is marked with another name, has data in it, or does not know
    /// the platforms of a drill.
    pub async fn check(&self, platforms: &[u32]) -> Result<(), ChaosError> {
        let address = self.address;
        let mut client = self.admin()?;
        let status = client.get_status(api::GetStatusRequest {});
        let status = within(address, status).await?;
        if status.trial_marker != self.marker {
            let its = match status.trial_marker.as_str() {
                "" => "it has no marker, so it is not to be broken".to_owned(),
                other => format!("its marker is {other:?}"),
            };
            return Err(ChaosError::Usage(format!(
                "{address} is not the trial deployment {:?}: {its}. A broker that may be broken says \
                 trial.marker = \"NAME\" in its configuration",
                self.marker
            )));
        }
        if status.deltas_applied > 0 {
            return Err(ChaosError::Usage(format!(
                "{address} has {} deltas already: a drill begins with an empty deployment, and what it publishes \
                 stays there. Stop the broker, empty its data.dir, and start it",
                status.deltas_applied
            )));
        }
        let known = client.list_platforms(api::ListPlatformsRequest {});
        let known = within(address, known).await?.platforms;
        let missing: Vec<String> = (platforms.iter())
            .filter(|code| known.iter().all(|p| p.code != **code))
            .map(u32::to_string)
            .collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(ChaosError::Usage(format!(
                "{address} does not know the platforms {}: add them to its configuration, or take fewer in the \
                 drill's [workload]",
                missing.join(", ")
            ))),
        }
    }

    /// What can be done from outside: to the lines, by clients, and what the deployment's own command does.
    pub fn available(&self, what: &What) -> Result<(), Text> {
        match what {
            What::Partition { .. }
            | What::Latency { .. }
            | What::Loss { .. }
            | What::Bandwidth { .. }
            | What::ReconnectStorm
            | What::StalledSubscriber { .. }
            | What::Poison { .. }
            | What::Flood { .. }
            | What::KillConnector
            | What::CrashPostgres => Ok(()),
            What::KillBroker if self.kill_with.is_some() => Ok(()),
            What::KillBroker => {
                Err(("say how with --kill-with", "请用 --kill-with 说明方法").into())
            }
            _ => Err(Text::new(
                "its process, disk and clock are not ours",
                "其进程、磁盘与时钟不归演练所有",
            )),
        }
    }

    fn admin(&self) -> Result<AdminClient, ChaosError> {
        let operator = Identity::Operator("chaos".to_owned());
        let endpoint = Endpoint::new(format!("http://{}", self.address), operator);
        admin(&endpoint).map_err(ChaosError::stage("the deployment's address"))
    }

    /// When it was started, by its own clock.
    pub async fn started_at(&self) -> Result<u64, ChaosError> {
        let mut client = self.admin()?;
        let status = client.get_status(api::GetStatusRequest {});
        Ok(within(self.address, status).await?.started_at_us)
    }
}

async fn within<T>(
    address: SocketAddr,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, ChaosError> {
    let answer = tokio::time::timeout(CALL_MAX, call).await;
    let answer = answer.map_err(|_| ChaosError::Stage(format!("{address} does not answer")))?;
    let answer = answer.map_err(ChaosError::stage(&format!("{address} does not answer")))?;
    Ok(answer.into_inner())
}
