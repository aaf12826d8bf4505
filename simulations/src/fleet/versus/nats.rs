//! NATS core: a text protocol of lines, with the payload after its length.
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sockets::{Heard, Protocol};
use super::{number_of, payload};

#[derive(Default)]
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

    fn publish(number: u64) -> Vec<u8> {
        let payload = payload(number);
        let mut packet = format!("PUB fleet {}\r\n", payload.len()).into_bytes();
        packet.extend_from_slice(&payload);
        packet.extend_from_slice(b"\r\n");
        packet
    }

    fn read(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> Result<Option<(usize, Heard)>> {
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
                let Some(body) = bytes.get(start..start + length + 2) else {
                    return Ok(None);
                };
                let number = number_of(&body[..length])?;
                Ok(Some((start + length + 2, Heard::Message(number))))
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
        let message = [b"MSG fleet 1 128\r\n", &payload(7)[..], b"\r\n"].concat();
        let (mut nats, mut answers) = (Nats, Vec::new());
        for length in 0..message.len() {
            assert_eq!(nats.read(&message[..length], &mut answers).unwrap(), None);
        }
        let more = [&message[..], b"PING\r\n"].concat();
        let read = nats.read(&more, &mut answers).unwrap();
        assert_eq!(read, Some((message.len(), Heard::Message(7))));
    }

    #[test]
    fn a_ping_is_answered_and_an_error_is_told() {
        let mut answers = Vec::new();
        let read = Nats.read(b"PING\r\n", &mut answers).unwrap();
        assert_eq!(read, Some((6, Heard::Aside)));
        assert_eq!(answers, b"PONG\r\n");
        let error = Nats.read(b"-ERR 'Maximum Connections Exceeded'\r\n", &mut answers);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("Maximum Connections"), "{error}");
    }
}
