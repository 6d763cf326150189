//! Tells a service manager when the node is ready: systemd's `Type=notify`, one datagram to a socket it names.

use std::io;

/// Sends a state such as `READY=1` to the socket that `NOTIFY_SOCKET` names; nothing where it names none.
///
/// # Errors
/// Where there is a socket but it takes no message.
#[cfg(target_os = "linux")]
pub fn notify(state: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => send(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), state),
        None => Ok(()),
    }
}

/// Sends nothing: the platform has no such socket.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn notify(_state: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn send(path: &[u8], state: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let address = match path {
        // A leading @ stands for the zero byte of an abstract name.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_that_the_node_is_ready() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("notify");
        let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_encoded_bytes(), "READY=1").unwrap();
        let mut buffer = [0; 16];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
