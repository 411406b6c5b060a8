//! The engine's own thread: commands in, steps, and what happens when a step goes wrong.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::handle::{Command, Inner};
use super::{EngineCore, EngineError, EngineHandle, GenerationError, Load};
use crate::model::forward::ForwardError;

/// What clients learn of a panic. What it says may quote anything, so that goes to the log only.
const PANICKED: &str = "a step panicked";

/// Moves `core` to a thread of its own.
pub(crate) fn spawn(core: EngineCore) -> Result<EngineHandle, EngineError> {
    // A place for every request that the queue may hold, and one for the word to shut down.
    let (sender, commands) = sync_channel(core.max_queued_requests + 1);
    let (load_sender, load) = watch::channel(core.load());
    core.instruments.observe(&core.admission, &load);
    let (admission, info, tokenizer) =
        (Arc::clone(&core.admission), core.info.clone(), Arc::clone(&core.tokenizer));
    let main = move || EngineThread { core, commands, load: load_sender }.run();
    let thread =
        std::thread::Builder::new().name("engine".to_owned()).spawn(main).map_err(EngineError::Thread)?;
    let thread = Mutex::new(Some(thread));
    Ok(EngineHandle::new(Inner { admission, commands: sender, thread, load, info, tokenizer }))
}

struct EngineThread {
    core: EngineCore,
    commands: Receiver<Command>,
    load: watch::Sender<Load>,
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Step,
    End,
}

impl EngineThread {
    fn run(mut self) {
        loop {
            // The state is not used after a panic other than to end its generations.
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(Ok(Next::Step)) => {}
                Ok(Ok(Next::End)) => return self.end(GenerationError::Stopped),
                Ok(Err(error)) => return self.fail(&error.to_string(), error.to_string()),
                Err(panic) => return self.fail(message(panic.as_ref()), PANICKED.to_owned()),
            }
        }
    }

    /// Commands, then a step.
    fn turn(&mut self) -> Result<Next, ForwardError> {
        if self.take_commands() == Next::End {
            return Ok(Next::End);
        }
        self.core.step()?;
        self.publish();
        Ok(Next::Step)
    }

    /// Takes all commands that are there; while the engine is idle, waits for one.
    fn take_commands(&mut self) -> Next {
        loop {
            if self.core.admission.stopped() {
                return Next::End;
            }
            let command = if self.core.is_idle() {
                self.commands.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.commands.try_recv()
            };
            match command {
                Ok(Command::Submit(submission)) => self.core.enqueue(*submission),
                Ok(Command::Shutdown) => return Next::End,
                Err(TryRecvError::Disconnected) if self.core.is_idle() => return Next::End,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Next::Step,
            }
        }
    }

    fn publish(&self) {
        let new = self.core.load();
        self.load.send_if_modified(|load| {
            let changed = *load != new;
            *load = new;
            changed
        });
    }

    /// The step went wrong: the engine is of no use any more, the process is. `cause` is for the log, `message` for
    /// clients.
    fn fail(self, cause: &str, message: String) {
        tracing::error!(model = self.core.info.name, error = cause, "engine failed");
        self.end(GenerationError::Internal(message));
    }

    fn end(mut self, error: GenerationError) {
        self.core.fail(&error);
        // Requests that were let in before admission stopped.
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit(submission) = command {
                submission.events.fail(error.clone());
            }
        }
        self.publish();
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic without a message")
}
