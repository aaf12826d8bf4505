use super::*;

const GOOD: &str = r#"
model = "digits"
candidate = "2.0.0"
strategy = "canary"
owner = "ana"
lease = "10s"

[policy]
preset = "balanced"
error_rate_max = 0.01
latency_p95_max_ms = 120
latency_multiplier_max = 1.5
agreement_min = 0.95
min_requests = 200
check_every = "1s"

[[stage]]
name = "shadow"
mode = "shadow"
share_percent = 100
hold = "30s"

[[stage]]
name = "canary-10"
mode = "canary"
by = "request"
share_percent = 10
hold = "30s"

[[stage]]
name = "canary-nodes"
mode = "canary"
by = "node"
percent = 50
selector = { zone = "eu-1" }
hold = "30s"

[[stage]]
name = "full"
mode = "full"
watch = "1m"
approvals = ["ml-engineering"]
"#;

fn refusal(change: (&str, &str)) -> String {
    assert!(GOOD.contains(change.0), "the fixture has no {:?}", change.0);
    Plan::from_toml(&GOOD.replacen(change.0, change.1, 1))
        .unwrap_err()
        .to_string()
}

#[test]
fn the_documented_plan_reads_and_survives_the_journal() {
    let plan = Plan::from_toml(GOOD).unwrap();
    assert_eq!(plan.stages.len(), 4);
    assert_eq!(plan.policy.min_requests, 200);
    assert_eq!(plan.policy.latency_p95_max_ms, Some(120.0));
    assert_eq!(plan.stages[3].hold, Duration::from_secs(60));
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn unknown_fields_are_named() {
    assert!(refusal(("min_requests", "min_request")).contains("min_request"));
    assert!(refusal(("lease =", "leese =")).contains("leese"));
}

#[test]
fn shares_over_100_are_refused() {
    assert!(refusal(("share_percent = 10\n", "share_percent = 110\n")).contains("0 to 100"));
    assert!(refusal(("percent = 50", "percent = 150")).contains("at most 100"));
}

#[test]
fn stages_out_of_order_are_refused() {
    let swapped = GOOD.replace(
        "mode = \"shadow\"\nshare_percent = 100",
        "mode = \"canary\"\nby = \"request\"\nshare_percent = 5",
    );
    assert!(
        Plan::from_toml(&swapped)
            .unwrap_err()
            .to_string()
            .contains("a shadow stage first")
    );
    let late_shadow = GOOD.replace("mode = \"full\"\nwatch", "mode = \"shadow\"\nhold");
    assert!(
        Plan::from_toml(&late_shadow)
            .unwrap_err()
            .to_string()
            .contains("cannot follow")
    );
}

#[test]
fn shares_that_shrink_are_refused() {
    let shrinking = GOOD.replace(
        "by = \"node\"\npercent = 50\nselector = { zone = \"eu-1\" }",
        "by = \"request\"\nshare_percent = 5",
    );
    assert!(
        Plan::from_toml(&shrinking)
            .unwrap_err()
            .to_string()
            .contains("shares only grow")
    );
}

#[test]
fn a_lease_that_heartbeats_cannot_keep_is_refused() {
    assert!(refusal(("lease = \"10s\"", "lease = \"1s\"")).contains("lease is 1s"));
    assert!(refusal(("lease = \"10s\"", "lease = \"forever\"")).contains("not a duration"));
}

#[test]
fn fields_of_another_mode_are_refused() {
    assert!(refusal(("watch = \"1m\"", "share_percent = 5")).contains("fields of another mode"));
    assert!(refusal(("by = \"request\"\n", "")).contains("needs by ="));
}

#[test]
fn a_plan_without_stages_gets_the_ready_made_ones() {
    let plan = |strategy: &str| {
        Plan::from_toml(&format!(
            "model='m'\ncandidate='1.0.0'\nstrategy='{strategy}'"
        ))
        .unwrap()
    };
    assert_eq!(plan("direct").stages.len(), 1);
    assert_eq!(plan("shadow").stages.len(), 1);
    assert_eq!(plan("canary").stages.len(), 5);
}
