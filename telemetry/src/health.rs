//! Is the process alive, and is it ready?

use tokio::sync::watch;

/// Shared by who knows and who is asked. Starts alive and not ready.
#[derive(Clone, Debug)]
pub struct Health {
    state: watch::Sender<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Why it should be restarted, if so.
    dead: Option<String>,
    /// Why it should get no traffic, if so.
    not_ready: Option<String>,
}

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

impl Health {
    pub fn new() -> Health {
        let starting = State {
            dead: None,
            not_ready: Some("starting".to_owned()),
        };
        Health {
            state: watch::Sender::new(starting),
        }
    }

    /// `Err` with the reason when it should get no traffic, such as "draining".
    pub fn set_ready(&self, ready: Result<(), String>) {
        self.state
            .send_modify(|state| state.not_ready = ready.err());
    }

    /// For good: only a restart helps. The first reason stays.
    pub fn set_dead(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.state.send_modify(|state| {
            state.dead.get_or_insert(reason);
        });
    }

    /// `Err` with the reason when a restart is the only way out.
    pub fn live(&self) -> Result<(), String> {
        match &self.state.borrow().dead {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// `Err` with the reason when it should get no traffic now.
    pub fn ready(&self) -> Result<(), String> {
        self.live()?;
        match &self.state.borrow().not_ready {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// Returns when it is ready, or when it is not. Safe to cancel.
    pub async fn until(&self, ready: bool) {
        let mut seen = self.state.subscribe();
        let is = |state: &State| state.dead.is_none() && state.not_ready.is_none();
        // This handle holds the sender, so the channel cannot close.
        let reached = seen.wait_for(|state| is(state) == ready).await;
        drop(reached);
    }

    /// Returns once it is ready or dead. Safe to cancel.
    pub async fn decided(&self) -> Result<(), String> {
        let mut seen = self.state.subscribe();
        // This handle holds the sender, so the channel cannot close.
        let decided = seen
            .wait_for(|state| state.dead.is_some() || state.not_ready.is_none())
            .await;
        drop(decided);
        self.live()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_alive_and_not_ready_and_never_comes_back_from_the_dead() {
        let health = Health::new();
        assert_eq!(health.live(), Ok(()));
        assert_eq!(health.ready(), Err("starting".to_owned()));
        health.set_ready(Ok(()));
        assert_eq!(health.ready(), Ok(()));
        health.set_ready(Err("draining".to_owned()));
        assert_eq!(health.ready(), Err("draining".to_owned()));
        health.set_dead("the log is poisoned");
        health.set_dead("something later");
        health.set_ready(Ok(()));
        assert_eq!(health.live(), Err("the log is poisoned".to_owned()));
        assert_eq!(health.ready(), Err("the log is poisoned".to_owned()));
    }

    #[tokio::test]
    async fn whoever_waits_learns_when_it_is_ready() {
        let health = Health::new();
        let waiting = health.clone();
        let (decided, ()) = tokio::join!(waiting.decided(), async { health.set_ready(Ok(())) });
        assert_eq!(decided, Ok(()));
    }
}
