//! Searches that are told to end. They have folders, and a drill has more, which the default of a signal would
//! leave; so a signal is noted, and they end at the next place where nothing is half done.

use crate::{
    commands::{INTERRUPTED, Interrupts},
    error::ChaosError,
};
use std::sync::atomic::{AtomicBool, Ordering};

static TOLD: AtomicBool = AtomicBool::new(false);

/// What a search that was told to end says in place of a result.
pub const INTERRUPTED_HERE: &str = "interrupted";

/// From now on Ctrl-C and SIGTERM are noted. A second one ends the program at once.
pub fn listen() -> Result<(), ChaosError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(ChaosError::stage("cannot listen to signals"))?;
    let mut interrupts = {
        let _inside = runtime.enter();
        Interrupts::listen()?
    };
    let wait = move || {
        runtime.block_on(async {
            interrupts.next().await;
            TOLD.store(true, Ordering::SeqCst);
            interrupts.next().await;
        });
        std::process::exit(i32::from(INTERRUPTED));
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map_err(ChaosError::stage("cannot listen to signals"))?;
    Ok(())
}

pub fn told() -> bool {
    TOLD.load(Ordering::SeqCst)
}

/// An error from the moment on at which somebody said so.
pub fn check() -> Result<(), String> {
    match told() {
        true => Err(INTERRUPTED_HERE.to_owned()),
        false => Ok(()),
    }
}
