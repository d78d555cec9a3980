//! How a command fails: whose fault it was decides the exit code.

use reattention::MethodError;
use reattention_engine::SessionError;
use reattention_eval::EvalError;
use std::process::ExitCode;

/// Why a command did not finish.
pub(crate) enum Failure {
    /// Bad usage or bad input: exit code 2.
    Input(anyhow::Error),
    /// Something failed while running: exit code 1.
    Run(anyhow::Error),
}

impl Failure {
    /// The failure that an error is, where the error itself does not know: bad input, or not.
    fn of(error: anyhow::Error, is_input: bool) -> Self {
        if is_refusal(&error).unwrap_or(is_input) { Self::Input(error) } else { Self::Run(error) }
    }

    /// Says it on stderr.
    pub(crate) fn report(self) -> ExitCode {
        let (error, code) = match self {
            Self::Input(error) => (error, 2),
            Self::Run(error) => (error, 1),
        };
        // A reader that closes the pipe early, as `head` does, has what it wanted.
        if error.chain().any(|e| {
            e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        }) {
            return ExitCode::SUCCESS;
        }
        crate::common::complain(format_args!("reattn: {error:#}"));
        ExitCode::from(code)
    }
}

/// Turns errors into failures.
pub(crate) trait Blame<T> {
    /// The input was bad.
    fn input(self) -> Result<T, Failure>;
    /// It failed while running.
    fn running(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Blame<T> for Result<T, E> {
    fn input(self) -> Result<T, Failure> {
        self.map_err(|e| Failure::of(e.into(), true))
    }

    fn running(self) -> Result<T, Failure> {
        self.map_err(|e| Failure::of(e.into(), false))
    }
}

/// Whether an error that knows of itself says that the input was refused, and not that something failed.
fn is_refusal(error: &anyhow::Error) -> Option<bool> {
    let method = error.downcast_ref().map(MethodError::is_refusal);
    let session = error.downcast_ref().map(SessionError::is_refusal);
    method.or(session).or_else(|| error.downcast_ref().map(EvalError::is_refusal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattention_kernels::ColdError;

    fn is_input<T>(result: Result<T, Failure>) -> bool {
        matches!(result, Err(Failure::Input(_)))
    }

    /// A method that refuses was asked for too much, wherever that turns out; a disk that is full has failed, wherever.
    #[test]
    fn errors_that_know_decide_the_exit_code() {
        let full = || {
            let (folder, reason) = ("/tmp".into(), "no space left".into());
            MethodError::Disk(ColdError { folder, bytes: 1, held: 0, reason })
        };
        let refused = || MethodError::NotKeyValue("x".into());
        assert!(!is_input(Err::<(), _>(full()).input()) && is_input(Err::<(), _>(refused()).running()));
        let session = |error| Err::<(), _>(SessionError::Method(error));
        assert!(!is_input(session(full()).input()) && is_input(session(refused()).running()));
        let eval = |error| Err::<(), _>(EvalError::Session(SessionError::Method(error)));
        assert!(!is_input(eval(full()).input()) && is_input(eval(refused()).running()));
        let other = || Err::<(), _>(std::io::Error::other("x"));
        assert!(is_input(other().input()) && !is_input(other().running()));
    }
}
