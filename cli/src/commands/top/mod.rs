//! `top`: platforms, lags and rates on the whole terminal, asked again every second.

mod draw;
mod model;

use super::{Context, lag, platforms};
use crate::errors::CliError;
use clap::Args;
use hutong_connectors::client;
use hutong_proto::api;
use model::{Answers, Key, Model};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use std::{
    env,
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=60))]
    pub every: u64,
}

/// Keys that nobody took yet.
const KEYS_MAX: usize = 64;
/// A broker that answers later is not well, and the terminal must not hang with it.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How soon the thread that reads keys sees that it is over.
const KEY_POLL: Duration = Duration::from_millis(100);

/// Gives the terminal back as it was, however this ends.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

pub async fn run(context: &Context, args: &TopArgs) -> Result<(), CliError> {
    if !io::stdout().is_terminal() {
        let what = "`hutong top` needs a terminal; without one use `hutong lag`";
        return Err(CliError::Usage(what.to_owned()));
    }
    // Who mistyped the address is told so on the plain screen.
    let first = answers(context).await?;
    let screen = Screen(ratatui::try_init().map_err(CliError::Output)?);
    let over = Arc::new(AtomicBool::new(false));
    let (pressed, keys) = mpsc::channel(KEYS_MAX);
    let reader = {
        let over = Arc::clone(&over);
        tokio::task::spawn_blocking(move || read_keys(&pressed, &over))
    };
    let shown = show(context, args, screen, keys, first).await;
    over.store(true, Ordering::Release);
    drop(reader.await);
    shown
}

async fn show(
    context: &Context,
    args: &TopArgs,
    mut screen: Screen,
    mut keys: mpsc::Receiver<Option<Key>>,
    first: Answers,
) -> Result<(), CliError> {
    let colour = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut model = Model::default();
    model.answered(first, None);
    let mut asked = Instant::now();
    let mut every = interval(Duration::from_secs(args.every));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every.tick().await;
    while !model.quit {
        screen
            .0
            .draw(|frame| draw::draw(frame, &model, &context.address, colour))
            .map_err(CliError::Output)?;
        // Both arms are safe to cancel: a key or a tick is taken or stays. Questions are asked within the arm,
        // so a key waits for an answer under way.
        tokio::select! {
            key = keys.recv() => match key {
                Some(Some(key)) => model.key(key),
                // Drawn anew: the size changed.
                Some(None) => {}
                None => return Ok(()),
            },
            // Keys are not heard meanwhile.
            _ = every.tick() => match timeout(ANSWER_MAX, answers(context)).await {
                Err(_) => model.error = Some(format!("no answer within {} s", ANSWER_MAX.as_secs())),
                Ok(Ok(answers)) => {
                    let since = asked.elapsed();
                    asked = Instant::now();
                    model.answered(answers, Some(since));
                }
                Ok(Err(error)) => model.error = Some(error.to_string()),
            },
        }
    }
    Ok(())
}

/// Reads until it is over. Nothing stands for a change of the terminal.
fn read_keys(pressed: &mpsc::Sender<Option<Key>>, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        match event::poll(KEY_POLL) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(_) => return,
        }
        let Ok(event) = event::read() else { return };
        let key = match event {
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                match meaning(key.code, key.modifiers) {
                    Some(key) => Some(key),
                    None => continue,
                }
            }
            Event::Resize(_, _) => None,
            _ => continue,
        };
        if pressed.blocking_send(key).is_err() {
            return;
        }
    }
}

fn meaning(code: KeyCode, modifiers: KeyModifiers) -> Option<Key> {
    Some(match code {
        // In raw mode the terminal makes no signal of it.
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Char('q'),
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc | KeyCode::Backspace => Key::Back,
        KeyCode::Tab => Key::NextLane,
        _ => return None,
    })
}

async fn answers(context: &Context) -> Result<Answers, CliError> {
    let mut admin = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let matrix = admin
        .get_lag_matrix(api::GetLagMatrixRequest {})
        .await
        .map_err(|s| context.refused(&s))?;
    Ok(Answers {
        platforms: platforms::read_platforms(context).await?,
        lags: lag::read(context).await?,
        pairs: lag::pairs(&matrix.into_inner()),
    })
}
