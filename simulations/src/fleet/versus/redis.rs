//! Redis pub/sub in RESP2: lines whose first byte is their kind.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::sockets::{Heard, Protocol};
use super::{number_of, payload};

#[derive(Default)]
pub(super) struct Redis;

/// A second thread that reads and writes may help, or only take turns with the
/// receivers on a small machine. It spins for some time after a message, which is its
/// cost: CPU counts until the broker is idle.
pub(super) const SETTINGS: &[&[&str]] = &[
    &["--io-threads", "1"],
    &["--io-threads", "2", "--io-threads-do-reads", "yes"],
];

pub(super) fn configure(command: &mut Command, address: SocketAddr, receivers: u32) {
    command
        .args(["--bind", &address.ip().to_string()])
        .args(["--port", &address.port().to_string()])
        .args(["--maxclients", &(receivers + 16).to_string()])
        .args(["--save", "", "--appendonly", "no"]);
}

impl Protocol for Redis {
    fn hello_publisher() -> Vec<u8> {
        b"PING\r\n".to_vec()
    }

    fn hello_receiver(_: usize) -> Vec<u8> {
        b"SUBSCRIBE fleet\r\n".to_vec()
    }

    fn publish(number: u64) -> Vec<u8> {
        let payload = payload(number);
        let head = format!(
            "*3\r\n$7\r\nPUBLISH\r\n$5\r\nfleet\r\n${}\r\n",
            payload.len()
        );
        [head.as_bytes(), &payload, b"\r\n"].concat()
    }

    fn read(&mut self, bytes: &[u8], _: &mut Vec<u8>) -> Result<Option<(usize, Heard)>> {
        let mut reader = Reader { bytes, at: 0 };
        let heard = reader.reply()?;
        Ok(heard.map(|heard| (reader.at, heard)))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn line(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        self.at += end + 2;
        Some(&rest[..end])
    }

    /// A string, or an integer in its digits.
    fn part(&mut self) -> Result<Option<&'a [u8]>> {
        let Some(line) = self.line() else {
            return Ok(None);
        };
        match line.split_first() {
            Some((b':', digits)) => Ok(Some(digits)),
            Some((b'$', length)) => {
                let length = count_of(length)?;
                let Some(part) = self.bytes.get(self.at..self.at + length + 2) else {
                    return Ok(None);
                };
                self.at += length + 2;
                Ok(Some(&part[..length]))
            }
            _ => bail!("Redis said {:?}", String::from_utf8_lossy(line)),
        }
    }

    fn reply(&mut self) -> Result<Option<Heard>> {
        let Some(line) = self.line() else {
            return Ok(None);
        };
        match line.split_first() {
            // To how many it was published.
            Some((b':', _)) => Ok(Some(Heard::Aside)),
            Some((b'+', _)) => Ok(Some(Heard::Ready)),
            Some((b'*', count)) => {
                ensure!(count_of(count)? == 3, "a push of {count:?} parts");
                // A part that is not there to its end leaves nothing for the next.
                let Some(kind) = self.part()? else {
                    return Ok(None);
                };
                let Some(_channel) = self.part()? else {
                    return Ok(None);
                };
                let Some(last) = self.part()? else {
                    return Ok(None);
                };
                match kind {
                    b"message" => Ok(Some(Heard::Message(number_of(last)?))),
                    b"subscribe" => Ok(Some(Heard::Ready)),
                    _ => bail!("Redis pushed {:?}", String::from_utf8_lossy(kind)),
                }
            }
            _ => bail!("Redis said {:?}", String::from_utf8_lossy(line)),
        }
    }
}

fn count_of(digits: &[u8]) -> Result<usize> {
    std::str::from_utf8(digits)?
        .parse()
        .context("Redis told no length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_when_its_last_byte_is_there() {
        let head = &b"*3\r\n$7\r\nmessage\r\n$5\r\nfleet\r\n$128\r\n"[..];
        let message = [head, &payload(7), b"\r\n"].concat();
        let mut answers = Vec::new();
        for length in 0..message.len() {
            let read = Redis.read(&message[..length], &mut answers);
            assert_eq!(read.unwrap(), None, "{length} bytes");
        }
        let more = [&message[..], b":1\r\n"].concat();
        let read = Redis.read(&more, &mut answers).unwrap();
        assert_eq!(read, Some((message.len(), Heard::Message(7))));
    }

    #[test]
    fn a_subscription_stands_when_redis_says_so_and_an_error_is_told() {
        let said = b"*3\r\n$9\r\nsubscribe\r\n$5\r\nfleet\r\n:1\r\n";
        let read = Redis.read(said, &mut Vec::new()).unwrap();
        assert_eq!(read, Some((said.len(), Heard::Ready)));
        let error = Redis.read(b"-ERR max number of clients reached\r\n", &mut Vec::new());
        assert!(error.unwrap_err().to_string().contains("max number"));
    }
}
