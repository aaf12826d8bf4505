//! The definition that is handed to clients, and the messages here, say the same.

use std::collections::BTreeMap;

const DEFINITION: &str = include_str!("../../../../proto/open_inference_grpc.proto");
const MESSAGES: &str = include_str!("../wire.rs");
/// Of another definition, or of none: an entry of a map has no name.
const ELSEWHERE: [&str; 4] = [
    "HealthCheckRequest",
    "HealthCheckResponse",
    "ServingStatus",
    "ParameterName",
];

/// Field or value -> its number and its type (`repeated` and all).
type Fields = BTreeMap<String, (u32, String)>;

/// What the `.proto` says, by message or enum.
fn defined() -> BTreeMap<String, Fields> {
    let mut found: BTreeMap<String, Fields> = BTreeMap::new();
    let mut within: Vec<String> = Vec::new();
    for line in DEFINITION.lines() {
        let line = line.split("//").next().unwrap().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["message" | "enum", name, ..] => {
                found.entry((*name).to_owned()).or_default();
                if !line.ends_with('}') {
                    within.push((*name).to_owned());
                }
            }
            // Its fields are its message's.
            ["oneof", ..] => within.push(within.last().unwrap().clone()),
            ["service", name, ..] => within.push((*name).to_owned()),
            ["}"] => drop(within.pop()),
            [kind @ .., name, "=", number] if within.last().is_some() => {
                let number = number.trim_end_matches(';').parse().unwrap();
                let fields = found.get_mut(within.last().unwrap()).unwrap();
                fields.insert((*name).to_owned(), (number, kind.join(" ")));
            }
            _ => {}
        }
    }
    found
}

/// What the Rust messages say, in the definition's words.
fn declared() -> BTreeMap<String, Fields> {
    let mut found: BTreeMap<String, Fields> = BTreeMap::new();
    let mut within = String::new();
    let mut attribute = None;
    for line in MESSAGES.lines().map(str::trim) {
        let opened = line
            .strip_prefix("pub struct ")
            .or_else(|| line.strip_prefix("pub enum "));
        if let Some(rest) = opened {
            within = match rest.trim_end_matches(['{', ' ']) {
                // A oneof's fields are its message's.
                "ParameterChoice" => "InferParameter".to_owned(),
                name => name.to_owned(),
            };
            found.entry(within.clone()).or_default();
        } else if let Some(rest) = line.strip_prefix("#[prost(") {
            attribute = Some(rest.trim_end_matches(")]"));
        } else if let Some(attribute) = attribute.take() {
            if !attribute.starts_with("oneof") {
                let (name, number, kind) = field(attribute, line);
                let fields = found.get_mut(&within).unwrap();
                assert!(fields.insert(name, (number, kind)).is_none());
            }
        } else if let Some((name, number)) = line.split_once(" = ")
            && let Ok(number) = number.trim_end_matches(',').parse()
        {
            let name = format!("TYPE_{}", name.to_uppercase());
            found
                .get_mut(&within)
                .unwrap()
                .insert(name, (number, String::new()));
        }
    }
    found
}

fn field(attribute: &str, line: &str) -> (String, u32, String) {
    let (kind, number) = attribute.rsplit_once(", tag = ").unwrap();
    let number = number.trim_matches('"').parse().unwrap();
    let line = line.trim_end_matches(',');
    let (name, inner) = match line.strip_prefix("pub ") {
        Some(line) => {
            let (name, of) = line.split_once(": ").unwrap();
            let inner = of.trim_end_matches('>').rsplit(['<', ' ']).next().unwrap();
            (name.to_owned(), inner)
        }
        None => {
            let variant = line.split('(').next().unwrap();
            let start = |at: usize| at > 0 && variant.as_bytes()[at].is_ascii_uppercase();
            let snake = variant.char_indices().map(|(at, letter)| {
                let letter = letter.to_ascii_lowercase();
                if start(at) {
                    format!("_{letter}")
                } else {
                    letter.to_string()
                }
            });
            (snake.collect(), "")
        }
    };
    let repeated = if kind.contains("repeated") {
        "repeated "
    } else {
        ""
    };
    let base = match kind.split([',', ' ']).next().unwrap() {
        "message" if inner == "ParameterName" => {
            return (name, number, "map<string, InferParameter>".to_owned());
        }
        "message" => inner.to_owned(),
        "btree_map" => format!("map<string, {inner}>"),
        "enumeration" => kind.split('"').nth(1).unwrap().to_owned(),
        scalar => scalar.to_owned(),
    };
    (name, number, format!("{repeated}{base}"))
}

#[test]
fn every_message_here_is_as_the_definition_has_it() {
    let (defined, declared) = (defined(), declared());
    assert!(declared.len() > 20 && declared["ModelInferRequest"].len() == 7);
    for (message, fields) in &declared {
        if ELSEWHERE.contains(&message.as_str()) {
            continue;
        }
        let known = defined.get(message);
        let known = known.unwrap_or_else(|| panic!("the definition has no {message}"));
        for (name, field) in fields {
            assert_eq!(known.get(name), Some(field), "{message}.{name}");
        }
    }
}
