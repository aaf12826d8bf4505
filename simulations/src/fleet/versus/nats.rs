//! NATS core: a text protocol of lines, with the payload after its length.
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sockets::{Heard, Protocol};

pub(super) struct Nats;

pub(super) fn configure(command: &mut Command, address: SocketAddr) {
    command
        .args(["--addr", &address.ip().to_string()])
        .args(["--port", &address.port().to_string()]);
}

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";

impl Protocol for Nats {
    fn hello_publisher() -> Vec<u8> {
        format!("{CONNECT}PING\r\n").into_bytes()
    }

    fn hello_receiver(_: usize) -> Vec<u8> {
        format!("{CONNECT}SUB fleet 1\r\nPING\r\n").into_bytes()
    }

    fn publish(payload: &[u8]) -> Vec<u8> {
        let mut packet = format!("PUB fleet {}\r\n", payload.len()).into_bytes();
        packet.extend_from_slice(payload);
        packet.extend_from_slice(b"\r\n");
        packet
    }

    fn read<'a>(bytes: &'a [u8], answers: &mut Vec<u8>) -> Result<Option<(usize, Heard<'a>)>> {
        let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let (line, start) = (&bytes[..end], end + 2);
        match line.split(|byte| *byte == b' ').next().unwrap_or_default() {
            b"MSG" => {
                let length = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let length: usize = std::str::from_utf8(length)?
                    .parse()
                    .context("a message of no length")?;
                let payload = bytes.get(start..start + length + 2);
                Ok(payload.map(|payload| (start + length + 2, Heard::Message(&payload[..length]))))
            }
            b"PONG" => Ok(Some((start, Heard::Ready))),
            b"PING" => {
                answers.extend_from_slice(b"PONG\r\n");
                Ok(Some((start, Heard::Aside)))
            }
            b"INFO" | b"+OK" => Ok(Some((start, Heard::Aside))),
            _ => bail!("NATS said {:?}", String::from_utf8_lossy(line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_when_its_last_byte_is_there() {
        let bytes = b"MSG fleet 1 5\r\na\r\nbc\r\nPING\r\n";
        let whole = bytes.len() - 6;
        for length in 0..whole {
            assert_eq!(Nats::read(&bytes[..length], &mut Vec::new()).unwrap(), None);
        }
        let read = Nats::read(bytes, &mut Vec::new()).unwrap();
        assert_eq!(read, Some((whole, Heard::Message(b"a\r\nbc"))));
    }

    #[test]
    fn a_ping_is_answered_and_an_error_is_told() {
        let mut answers = Vec::new();
        let read = Nats::read(b"PING\r\n", &mut answers).unwrap();
        assert_eq!(
            (read, &answers[..]),
            (Some((6, Heard::Aside)), &b"PONG\r\n"[..])
        );
        let error = Nats::read(b"-ERR 'Maximum Connections Exceeded'\r\n", &mut answers);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("Maximum Connections")
        );
    }
}
