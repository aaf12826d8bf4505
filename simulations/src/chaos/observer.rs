//! The outside observer: reads what nodes serve and what the coordinator shows, over and
//! over, and writes it down. Judges nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use super::checker::rank;
use super::ground::{Ground, MODEL};
use super::history::{Acknowledged, Answered, Deed, Rank, Status, View, Withdrawal};
use super::operator::follow;
use crate::traffic::{Observer, http_client};

const STATUS_EVERY: Duration = Duration::from_millis(150);
const STATUS_MAX: Duration = Duration::from_secs(5);
const VIEW_EVERY: Duration = Duration::from_secs(1);

/// Watches until dropped.
pub(super) fn watch(ground: &Arc<Ground>) -> JoinSet<()> {
    let mut watchers = JoinSet::new();
    for node in 0..ground.nodes.len() {
        watchers.spawn(statuses(Arc::clone(ground), node));
    }
    watchers.spawn(views(Arc::clone(ground)));
    watchers
}

/// Takes over the answers that clients got since the last time.
pub(super) fn take_answers(ground: &Ground, clients: &Observer) {
    let answers = clients.take();
    let mut history = ground.history();
    for answer in answers {
        let sent = ground.at(answer.sent);
        history.nodes[answer.node].answers.push(Answered {
            sent,
            got: sent + answer.latency,
            version: answer.version,
        });
    }
}

async fn statuses(ground: Arc<Ground>, node: usize) {
    let http = http_client();
    let url = format!("http://{}/rollcall/v1/status", ground.nodes[node].http);
    loop {
        let asked = ground.now();
        let answer = http.get(&url).timeout(STATUS_MAX).send().await;
        if let Ok(answer) = answer
            && let Ok(page) = answer.json::<Value>().await
        {
            note_status(&ground, node, asked, &page);
        }
        tokio::time::sleep(STATUS_EVERY).await;
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn note_status(ground: &Ground, node: usize, asked: Duration, page: &Value) {
    let models = page["models"].as_array().into_iter().flatten();
    // A node that has not read its disk yet shows nothing.
    for model in models.filter(|model| model["model"] == MODEL) {
        let serving = model["serving"].as_array().into_iter().flatten();
        let status = Status {
            asked,
            got: ground.now(),
            generation: model["generation"].as_u64().unwrap_or(0),
            candidate: text(&model["candidate"]),
            serving: serving
                .filter_map(|serving| Some((text(&serving["version"])?, text(&serving["digest"])?)))
                .collect(),
        };
        let mut history = ground.history();
        history.ever_stable.extend(text(&model["stable"]));
        history.nodes[node].statuses.push(status);
    }
}

async fn views(ground: Arc<Ground>) {
    let mut ranks = BTreeMap::new();
    loop {
        view(&ground, &mut ranks).await;
        tokio::time::sleep(VIEW_EVERY).await;
    }
}

/// One look at what the coordinator shows; both parts of it from one process, or none.
async fn view(ground: &Arc<Ground>, ranks: &mut BTreeMap<String, Rank>) -> Option<()> {
    // A restore between the two questions would make a view that never was.
    let restores = ground.history().restores.len();
    let asked = ground.now();
    let model = ground.ask(&["model", "show", MODEL]).await?;
    let rollouts = ground.ask(&["rollout", "list"]).await?;
    let got = ground.now();
    let mut view = View {
        asked,
        generation: model["generation"].as_u64()?,
        ..View::default()
    };
    for version in model["versions"].as_array()? {
        let withdrawn = version["stage"] == "withdrawn";
        view.versions.insert(text(&version["version"])?, withdrawn);
    }
    let mut news = Vec::new();
    for rollout in rollouts.as_array()? {
        let (id, state) = (text(&rollout["id"])?, rank(rollout["state"].as_str()?));
        if ranks.get(&id).is_none_or(|known| *known < state) {
            ranks.insert(id.clone(), state);
            news.push((id.clone(), state, rollout));
        }
        view.rollouts.insert(id, state);
    }
    let mut history = ground.history();
    if history.restores.len() != restores {
        return None;
    }
    for (rollout, rank, shown) in news {
        let what = Deed::Rollout {
            rollout: rollout.clone(),
            rank,
        };
        history.acknowledged.push(Acknowledged { at: got, what });
        let version = text(&shown["candidate"])?;
        if step(shown, "promoted").is_some() {
            history.ever_stable.insert(version.clone());
        }
        let withdrawn = step(shown, "withdrawn").and_then(|step| step["generation"].as_u64());
        if let Some(generation) = withdrawn
            && !history.withdrawals.contains_key(&version)
        {
            let withdrawal = Withdrawal {
                rollout: rollout.clone(),
                generation,
                asked: None,
                known: got,
            };
            history.withdrawals.insert(version.clone(), withdrawal);
            tokio::spawn(follow(Arc::clone(ground), rollout, version));
            ground.count("withdrawals by the judge");
        }
    }
    history.views.push(view);
    Some(())
}

fn step<'a>(rollout: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut steps = rollout["history"].as_array()?.iter();
    steps
        .find(|entry| entry["step"]["kind"] == kind)
        .map(|entry| &entry["step"])
}
