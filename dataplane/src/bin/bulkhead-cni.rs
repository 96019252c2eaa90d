//! The chained CNI plugin: see [`bulkhead_dataplane::cni`].

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use bulkhead_dataplane::cni::run::run;

fn main() -> ExitCode {
    // What is no UTF-8 can be no name either.
    let variable = |key: &str| env::var_os(key).map(|value| value.to_string_lossy().into_owned());
    let (output, code) = match run(variable, io::stdin().lock()) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(output)) => (output, ExitCode::SUCCESS),
        Err((version, error)) => (error.json(version), ExitCode::FAILURE),
    };
    match writeln!(io::stdout().lock(), "{output}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
