//! Mosquitto: MQTT 3.1.1, QoS 1, so that every receiver acknowledges every message.
//! <https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/mqtt-v3.1.1.html>

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::sockets::{Heard, Protocol};
use super::{number_of, payload};

#[derive(Default)]
pub(super) struct Mqtt;

const TOPIC: &[u8] = b"fleet";
/// The publisher's only packet in flight, and a receiver's only subscription.
const PACKET_ID: [u8; 2] = [0, 1];

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x80;
const SUBACK: u8 = 0x90;
const PINGREQ: u8 = 0xc0;
const PINGRESP: u8 = 0xd0;

/// The low bits that a SUBSCRIBE must have, and a PUBLISH's for QoS 1.
const RESERVED: u8 = 0b0010;
const QOS_1: u8 = 0b0010;
const QOS_MASK: u8 = 0b0110;

pub(super) fn configure(command: &mut Command, address: SocketAddr, dir: &Path) -> Result<()> {
    let file = dir.join("mosquitto.conf");
    let lines = format!(
        "listener {} {}\nallow_anonymous true\npersistence false\nmax_connections -1\nset_tcp_nodelay true\n\
         log_type error\nlog_type warning\nconnection_messages false\n",
        address.port(),
        address.ip()
    );
    std::fs::write(&file, lines)?;
    command.arg("-c").arg(file);
    Ok(())
}

fn packet(kind: u8, body: &[&[u8]]) -> Vec<u8> {
    let mut left: usize = body.iter().map(|part| part.len()).sum();
    let mut packet = vec![kind];
    loop {
        let digit = u8::try_from(left % 128).unwrap_or_default();
        left /= 128;
        packet.push(if left == 0 { digit } else { digit | 0x80 });
        if left == 0 {
            break;
        }
    }
    packet.extend(body.iter().copied().flatten());
    packet
}

/// A string with its length before it.
fn string(text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&length, text].concat()
}

/// A clean session that is never silent for too long.
fn connect(client: &str) -> Vec<u8> {
    const LEVEL_4: u8 = 4;
    const CLEAN_SESSION: u8 = 0b10;
    let fixed = [LEVEL_4, CLEAN_SESSION, 0, 0];
    packet(
        CONNECT,
        &[&string(b"MQTT"), &fixed, &string(client.as_bytes())],
    )
}

impl Protocol for Mqtt {
    fn hello_publisher() -> Vec<u8> {
        [connect("publisher"), packet(PINGREQ, &[])].concat()
    }

    fn hello_receiver(number: usize) -> Vec<u8> {
        let subscribe = [&PACKET_ID[..], &string(TOPIC), &[1]];
        [
            connect(&format!("receiver-{number}")),
            packet(SUBSCRIBE | RESERVED, &subscribe),
        ]
        .concat()
    }

    fn publish(number: u64) -> Vec<u8> {
        let payload = payload(number);
        packet(PUBLISH | QOS_1, &[&string(TOPIC), &PACKET_ID, &payload])
    }

    fn read(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> Result<Option<(usize, Heard)>> {
        let Some((start, end)) = extent(bytes)? else {
            return Ok(None);
        };
        let Some(body) = bytes.get(start..end) else {
            return Ok(None);
        };
        let heard = match bytes[0] & 0xf0 {
            CONNACK => {
                ensure!(body == [0, 0], "mosquitto refused a connection: {body:?}");
                Heard::Aside
            }
            SUBACK => {
                ensure!(
                    body == [0, 1, 1],
                    "mosquitto refused a subscription: {body:?}"
                );
                Heard::Ready
            }
            PINGRESP => Heard::Ready,
            PUBACK => Heard::Aside,
            PUBLISH => {
                ensure!(bytes[0] & QOS_MASK == QOS_1, "a message that is not QoS 1");
                let (id, payload) = published(body).context("a torn message")?;
                answers.extend_from_slice(&[PUBACK, 2, id[0], id[1]]);
                Heard::Message(number_of(payload)?)
            }
            kind => bail!("mosquitto sent a packet of kind {kind:#x}"),
        };
        Ok(Some((end, heard)))
    }
}

/// Where the body of the first packet begins and ends.
fn extent(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut length = 0;
    for (digit, byte) in bytes.iter().skip(1).enumerate() {
        ensure!(digit < 4, "a length of more than four bytes");
        length |= usize::from(byte & 0x7f) << (7 * digit);
        if byte & 0x80 == 0 {
            let start = digit + 2;
            return Ok(Some((start, start + length)));
        }
    }
    Ok(None)
}

/// A message's identifier and payload.
fn published(body: &[u8]) -> Option<([u8; 2], &[u8])> {
    let (length, rest) = body.split_first_chunk()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
    let (id, payload) = rest.split_first_chunk()?;
    Some((*id, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_and_acknowledged_when_its_last_byte_is_there() {
        let body = [&string(TOPIC)[..], &[9, 8], &payload(7)].concat();
        let message = packet(PUBLISH | QOS_1, &[&body]);
        assert_eq!(message[1..3], [0x80 | 9, 1], "137 bytes: a length of two");
        let mut answers = Vec::new();
        for length in 0..message.len() {
            assert_eq!(Mqtt.read(&message[..length], &mut answers).unwrap(), None);
        }
        assert!(answers.is_empty());
        let more = [&message[..], &packet(PINGRESP, &[])].concat();
        let read = Mqtt.read(&more, &mut answers).unwrap();
        assert_eq!(read, Some((message.len(), Heard::Message(7))));
        assert_eq!(answers, [PUBACK, 2, 9, 8]);
    }

    #[test]
    fn a_refused_connection_or_subscription_is_told() {
        let refused = packet(CONNACK, &[&[0, 5]]);
        assert!(Mqtt.read(&refused, &mut Vec::new()).is_err());
        let granted_less = packet(SUBACK, &[&[0, 1, 0]]);
        assert!(Mqtt.read(&granted_less, &mut Vec::new()).is_err());
    }
}
