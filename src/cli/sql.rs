//! `tribune query` and `tribune exec`: SQL over the node's HTTP port.

use serde_json::{Value as Json, json};

use super::client::{list, parsed, text};
use super::{Client, Failure, Remote, say, table};

#[derive(clap::Args)]
pub(super) struct QueryArgs {
    /// One SELECT
    sql: String,
    /// A value for the next `?`, may be repeated; JSON, or else a text
    #[arg(long = "param", value_name = "VALUE")]
    params: Vec<String>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Wait until the node holds what a write answered with: the token that `tribune exec --json`
    /// prints, on whichever node
    #[arg(long, value_name = "TOKEN")]
    wait_for: Option<String>,
    /// For how long, such as 5s; a minute at most
    #[arg(long, value_name = "TIME", default_value = "5s")]
    wait_timeout: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
pub(super) struct ExecArgs {
    /// Statements that write; together they are one transaction
    #[arg(required = true)]
    sql: Vec<String>,
    /// A value for the next `?` of a single statement, may be repeated; JSON, or else a text
    #[arg(long = "param", value_name = "VALUE")]
    params: Vec<String>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Let the node's other writes wait until it is through: for some 10,000 rows and more
    #[arg(long)]
    long: bool,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn query(args: QueryArgs) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    let mut path = format!("/v1/queries?timeout={}", args.timeout);
    if let Some(token) = &args.wait_for {
        let (token, limit) = (Client::segment(token), Client::segment(&args.wait_timeout));
        path.push_str(&format!("&wait_for={token}&wait_timeout={limit}"));
    }
    let response = client.post(&path, &json!([args.sql, values(&args.params)])).await?;
    let body = client.body(response).await?;
    let mut columns = Vec::new();
    let mut rows = Vec::new();
    let mut is_whole = false;
    for line in body.lines().filter(|line| !line.is_empty()) {
        let event = parsed(line, &body)?;
        if let Some(error) = event.get("error") {
            return Err(Failure::Failed(error.as_str().unwrap_or_default().to_owned()));
        }
        if let Some(names) = event.get("columns") {
            columns = list(names).iter().map(shown).collect();
        }
        is_whole |= event.get("eoq").is_some();
        if let Some(row) = event.pointer("/row/1") {
            rows.push(row.clone());
        }
    }
    if !is_whole {
        return Err(Failure::Failed("the answer broke off before its end".to_owned()));
    }
    if args.remote.json {
        return say(&format!("{:#}", json!({ "columns": columns, "rows": rows })));
    }
    let heads: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| list(row).iter().map(shown).collect()).collect();
    say(&table::layout(&heads, &rows))
}

pub(super) async fn exec(args: ExecArgs) -> Result<(), Failure> {
    let statements: Vec<Json> = match args.sql.as_slice() {
        [one] if !args.params.is_empty() => vec![json!([one, values(&args.params)])],
        _ if !args.params.is_empty() => {
            return Err(Failure::Usage("--param goes with a single statement".to_owned()));
        }
        several => several.iter().map(|sql| json!(sql)).collect(),
    };
    let client = Client::new(&args.remote)?;
    let path = format!("/v1/transactions?timeout={}&long={}", args.timeout, args.long);
    let response = client.post(&path, &Json::Array(statements)).await?;
    let body = client.body(response).await?;
    let answer = parsed(&body, &body)?;
    let results = answer.get("results").map_or(&[][..], list);
    if let Some(failed) = results.iter().find(|result| result.get("error").is_some()) {
        return Err(Failure::Failed(text(failed, "/error").to_owned()));
    }
    if args.remote.json {
        return say(&format!("{answer:#}"));
    }
    for result in results {
        let count = result.get("rows_affected").and_then(Json::as_u64).unwrap_or_default();
        say(&format!("{count} row{} affected", if count == 1 { "" } else { "s" }))?;
    }
    Ok(())
}

/// Reads parameters: what parses as JSON is that, all else is text.
fn values(params: &[String]) -> Vec<Json> {
    params
        .iter()
        .map(|param| serde_json::from_str(param).unwrap_or_else(|_| Json::String(param.clone())))
        .collect()
}

fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => "NULL".to_owned(),
        other => other.to_string(),
    }
}
