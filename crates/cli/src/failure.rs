//! How a command fails: whose fault it was decides the exit code.

use std::process::ExitCode;

/// Why a command did not finish.
pub(crate) enum Failure {
    /// Bad usage or bad input: exit code 2.
    Input(anyhow::Error),
    /// Something failed while running: exit code 1.
    Run(anyhow::Error),
}

impl Failure {
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
        self.map_err(|e| Failure::Input(e.into()))
    }

    fn running(self) -> Result<T, Failure> {
        self.map_err(|e| Failure::Run(e.into()))
    }
}
