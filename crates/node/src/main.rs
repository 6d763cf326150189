//! The `conclave` binary: reads its configuration, runs one node until it is told to stop.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use conclave_node::config::{self, Invocation};

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1);
    match config::parse(arguments, std::env::vars_os()) {
        Ok(Invocation::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(Invocation::Serve { config, notices }) => match conclave_node::run(*config, &notices) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// One line on standard error, with the reasons behind it where the message does not hold them.
fn complain(error: &dyn std::error::Error) {
    let _ = writeln!(std::io::stderr(), "conclave: {error}");
}
