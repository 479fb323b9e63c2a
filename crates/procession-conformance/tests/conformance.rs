//! Every scenario with every driver.

use procession_conformance::{
    for_each_scenario, scenarios,
    stage::{Driver, Stage},
};

/// Plays a scenario with a driver, if there is one here.
fn play(driver: Option<Driver>, scenario: fn(&mut Stage)) {
    if let Some(driver) = driver {
        scenario(&mut Stage::open(&driver));
    }
}

/// The tests of one driver: `all` scenarios, those that can be written with a `typed` interface, or those that are
/// `common` to every implementation.
macro_rules! suite {
    (all $driver:ident common $common:tt deaths $deaths:tt misuse $misuse:tt) => {
        mod $driver {
            groups! { $driver $common }
            mod deaths {
                groups! { $driver $deaths }
            }
            mod misuse {
                groups! { $driver $misuse }
            }
        }
    };
    (typed $driver:ident common $common:tt deaths $deaths:tt misuse $misuse:tt) => {
        mod $driver {
            groups! { $driver $common }
            mod deaths {
                groups! { $driver $deaths }
            }
        }
    };
    (common $driver:ident common $common:tt deaths $deaths:tt misuse $misuse:tt) => {
        mod $driver {
            groups! { $driver $common }
        }
    };
}

macro_rules! groups {
    ($driver:ident { $($group:ident { $($scenario:ident)* })* }) => {
        $(mod $group {
            $(#[test]
            fn $scenario() {
                crate::play(crate::driver::$driver(), crate::scenarios::$group::$scenario);
            })*
        })*
    };
}

/// The drivers by the names of their tests.
mod driver {
    use std::{
        env,
        ffi::OsString,
        path::PathBuf,
        process::{Command, Stdio},
    };

    use procession_conformance::stage::{Driver, folder};

    pub(crate) fn core() -> Option<Driver> {
        Some(Driver::new(env!("CARGO_BIN_EXE_core_driver"), [""; 0]))
    }

    pub(crate) fn rust_spawn() -> Option<Driver> {
        Some(Driver::new(env!("CARGO_BIN_EXE_rust_driver"), ["spawn"]))
    }

    pub(crate) fn rust_forkserver() -> Option<Driver> {
        Some(Driver::new(env!("CARGO_BIN_EXE_rust_driver"), ["forkserver"]))
    }

    /// The interpreter that make uses, or that of `.venv`, or any.
    fn interpreter() -> PathBuf {
        let venv = folder().join("../../.venv/bin/python");
        let candidates = env::var_os("PYO3_PYTHON").map(PathBuf::from).into_iter().chain([venv]);
        candidates.into_iter().find(|path| path.exists()).unwrap_or_else(|| "python3".into())
    }

    /// The Python driver, if this package can be imported.
    fn python(package: &str, module: &str, method: &str) -> Option<Driver> {
        let interpreter = interpreter();
        let mut import = Command::new(&interpreter);
        import.args(["-c", &format!("import {module}")]).stdin(Stdio::null());
        let missing = match import.output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(missing) = missing {
            let text = format!("{} can't import {module} (make develop): {missing}", interpreter.display());
            assert!(env::var_os("PROCESSION_CONFORMANCE_PYTHON").is_none(), "{text}");
            eprintln!("SKIPPED: {text}");
            return None;
        }
        let arguments = [folder().join("python/driver.py").into_os_string(), package.into(), method.into()];
        Some(Driver::new(interpreter, arguments.map(OsString::from)))
    }

    pub(crate) fn python_spawn() -> Option<Driver> {
        python("procession", "procession._core", "spawn")
    }

    pub(crate) fn python_fork() -> Option<Driver> {
        python("procession", "procession._core", "fork")
    }

    pub(crate) fn python_forkserver() -> Option<Driver> {
        python("procession", "procession._core", "forkserver")
    }

    /// The package that all this is like: to see whether the scenarios ask for what it does.
    pub(crate) fn standard_fork() -> Option<Driver> {
        python("multiprocessing", "multiprocessing", "fork")
    }
}

for_each_scenario! { suite all core }
for_each_scenario! { suite typed rust_spawn }
for_each_scenario! { suite typed rust_forkserver }
for_each_scenario! { suite all python_spawn }
for_each_scenario! { suite all python_fork }
for_each_scenario! { suite all python_forkserver }
for_each_scenario! { suite common standard_fork }
