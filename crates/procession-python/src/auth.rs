//! The handshake of connections. What is said is the core's; here it goes over Python's connections.

use procession_core::channel::{Digest, Handshake, LONGEST_MESSAGE, Step, create_response, verify_response};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyType},
};

use crate::{
    connection::{Connection, os_error},
    wait::Timeout,
};

/// Have both sides of a connection prove to each other that they have the key. Whoever accepted it, the `listener`, asks
/// first. `AuthenticationError` if the other side hasn't the key, or hasn't shown it after timeout seconds.
#[pyfunction]
#[pyo3(signature = (connection, authkey, *, listener, timeout = Timeout::FOREVER))]
pub(crate) fn authenticate(
    connection: &Bound<'_, PyAny>,
    authkey: &Bound<'_, PyAny>,
    listener: bool,
    timeout: Timeout,
) -> PyResult<()> {
    let key = bytes_of(authkey)?.as_bytes();
    let handshake = if listener { Handshake::listener(key) } else { Handshake::client(key) };
    run(handshake.map_err(|error| os_error(&error))?, connection, timeout)
}

/// Have the peer prove that it has the key. `AuthenticationError` if it hasn't.
#[pyfunction]
#[pyo3(signature = (connection, authkey, digest_name = "sha256"))]
pub(crate) fn deliver_challenge(
    connection: &Bound<'_, PyAny>,
    authkey: &Bound<'_, PyAny>,
    digest_name: &str,
) -> PyResult<()> {
    let key = bytes_of(authkey)?;
    let digest = Digest::named(digest_name.as_bytes()).ok_or_else(|| {
        let known = Digest::ALL.map(Digest::name).join(", ");
        PyValueError::new_err(format!("unsupported digest: {digest_name:?} (it can be {known})"))
    })?;
    let handshake = Handshake::deliver(key.as_bytes(), digest).map_err(|error| os_error(&error))?;
    run(handshake, connection, Timeout::FOREVER)
}

/// Prove to the peer that we have the key. `AuthenticationError` if it thinks otherwise.
#[pyfunction]
pub(crate) fn answer_challenge(connection: &Bound<'_, PyAny>, authkey: &Bound<'_, PyAny>) -> PyResult<()> {
    run(Handshake::answer(bytes_of(authkey)?.as_bytes()), connection, Timeout::FOREVER)
}

/// The answer to a challenge.
#[pyfunction]
pub(crate) fn _create_response<'py>(py: Python<'py>, authkey: &[u8], message: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let response = create_response(authkey, message).map_err(|error| refused(py, error))?;
    Ok(PyBytes::new(py, &response))
}

/// `AuthenticationError` unless the response is a right answer to the challenge.
#[pyfunction]
pub(crate) fn _verify_challenge(py: Python<'_>, authkey: &[u8], message: &[u8], response: &[u8]) -> PyResult<()> {
    verify_response(authkey, message, response).map_err(|error| refused(py, error))
}

fn bytes_of<'a, 'py>(authkey: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    authkey.cast().or_else(|_| {
        let kind = authkey.get_type();
        Err(PyValueError::new_err(format!("Authkey must be bytes, not {}", kind.name()?)))
    })
}

fn run(mut handshake: Handshake, connection: &Bound<'_, PyAny>, timeout: Timeout) -> PyResult<()> {
    let py = connection.py();
    if let Ok(own) = connection.cast_exact::<Connection>() {
        return match own.get().authenticate(py, handshake, timeout)? {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(refused(py, error)),
            None => Err(refused(py, "the other side has not shown in time that it has the authkey")),
        };
    }
    // A subclass, or what only looks like a connection: nobody knows how it waits.
    loop {
        match handshake.step() {
            Step::Send(message) => connection.call_method1("send_bytes", (PyBytes::new(py, &message),)).map(drop)?,
            Step::Receive => {
                let message = connection.call_method1("recv_bytes", (LONGEST_MESSAGE,))?;
                handshake.received(message.cast::<PyBytes>()?.as_bytes());
            }
            Step::End(result) => return result.map_err(|error| refused(py, error)),
        }
    }
}

fn refused(py: Python<'_>, why: impl ToString) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "procession.context", "AuthenticationError") {
        Ok(class) => PyErr::from_type(class.clone(), (why.to_string(),)),
        Err(error) => error,
    }
}
