// Clicks through the running example with a real browser: two tabs, a deploy, a hot upgrade, a rollback, a build that fails
// and a release that does not start, while clients of its own keep asking. Fails on any failed request of the pages, of the
// example's prober or of those clients, and on any console error or warning; none is excused.
//
//   npm install && URL=http://localhost:4000 npm test
//
// The example has to be one that was just started with ./start.sh. CHROMIUM names the browser (/usr/bin/chromium), OUT a
// directory for screenshots (none by default).
import assert from "node:assert/strict";
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const url = process.env.URL ?? "http://localhost:4000";
const out = process.env.OUT;
const patience = Number(process.env.PATIENCE ?? 180_000);

const problems = [];
let requests = 0;

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "example-browser-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  colorScheme: process.env.COLOR_SCHEME ?? "light",
  viewport: { width: Number(process.env.WIDTH ?? 1180), height: 1280 },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

// What a tab shows must not be broken at any moment, and what is under way must never seem to go back: the page itself
// looks, at each change.
function watch() {
  window.broken = [];
  window.progress = [];
  const look = () => {
    const version = document.querySelector("[data-test=version]")?.textContent.trim();
    if (document.readyState === "complete" && !version) window.broken.push(document.body?.innerText.slice(0, 200));
    const done = document.querySelectorAll(".steps li.done").length;
    if (done !== window.progress.at(-1)) window.progress.push(done);
  };
  document.addEventListener("DOMContentLoaded", () =>
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true }));
}

// Requests from outside of the browser, without end: `keepAlive` clients go on with one connection for as long as the
// server does, the others take a new one each time. Nothing is tried again.
function load(keepAlive, clients = 4) {
  const agent = new http.Agent({ keepAlive, maxSockets: clients });
  const result = { requests: 0, failures: [] };
  let on = true;
  const ask = () =>
    new Promise((resolve) => {
      const failed = (error) => (result.failures.push(`${new Date().toISOString()} ${error.message}`), resolve());
      http
        .get(`${url}/probe`, { agent, timeout: 10_000 }, (answer) => {
          let body = "";
          answer.on("data", (data) => (body += data));
          answer.on("error", failed);
          answer.on("end", () => (/^release \S+ end$/.test(body) ? resolve() : failed(new Error(`${answer.statusCode} ${body}`))));
        })
        .on("timeout", function () { this.destroy(new Error("timeout")); })
        .on("error", failed);
    });
  const client = async () => {
    for (; on; result.requests += 1) {
      await ask();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  const all = Promise.all(Array.from({ length: clients }, client));
  return async () => ((on = false), await all, agent.destroy(), result);
}

async function open(name) {
  const page = await context.newPage();
  const socket = { opened: 0, open: 0, joins: 0 };
  let loads = 0;
  page.on("console", (m) => {
    if (["error", "warning"].includes(m.type())) problems.push(`${name}: console ${m.type()}: ${m.text()}`);
  });
  page.on("pageerror", (e) => problems.push(`${name}: ${e.message}`));
  page.on("requestfailed", (r) => problems.push(`${name}: ${r.method()} ${r.url()}: ${r.failure()?.errorText}`));
  page.on("response", (r) => {
    requests += 1;
    if (r.status() >= 400) problems.push(`${name}: ${r.status()} ${r.url()}`);
  });
  page.on("websocket", (w) => {
    socket.opened += 1;
    socket.open += 1;
    w.on("close", () => (socket.open -= 1));
    w.on("framesent", ({ payload }) => (socket.joins += payload.includes("phx_join") ? 1 : 0));
    w.on("socketerror", (e) => problems.push(`${name}: websocket ${e}`));
  });
  page.on("load", () => (loads += 1));
  await page.addInitScript(watch);
  await page.goto(url);
  await page.waitForSelector("[data-phx-main].phx-connected");

  const text = async (test) => (await page.locator(`[data-test=${test}]`).first().textContent()).trim();
  const shot = async (file) => out && page.screenshot({ path: path.join(out, file), fullPage: true });
  return { name, page, text, shot, socket: () => ({ ...socket }), loads: () => loads };
}

// The same page as before, not one that was loaded again; its view has the connection that it should.
async function sameSocket(tab, before) {
  assert.equal(tab.loads(), 1, `${tab.name} was loaded again`);
  assert.deepEqual(tab.socket(), before, `${tab.name} connected or joined again`);
}

async function reconnected(tab, before) {
  await tab.page.waitForSelector("[data-phx-main].phx-connected:not(.phx-error)");
  assert.equal(tab.loads(), 1, `${tab.name} was loaded again`);
  assert.deepEqual(tab.socket(), { opened: before.opened + 1, open: 1, joins: before.joins + 1 }, `${tab.name}'s socket`);
}

// Steps that are done stay done, on whichever peer the page is: a new job begins with none.
async function onlyForward(tab) {
  const progress = await tab.page.evaluate(() => window.progress.splice(0));
  for (const [i, done] of progress.entries()) {
    assert.ok(i === 0 || done === 0 || done > progress[i - 1], `${tab.name}: the progress went back: ${progress}`);
  }
}

const failed = (load) => load.failures.slice(0, 5);

const until = (tab, test, expected) =>
  tab.page.waitForFunction(
    ([test, expected]) => new RegExp(expected).test(document.querySelector(`[data-test=${test}]`)?.textContent.trim() ?? ""),
    [test, expected],
    { timeout: patience },
  );

async function step(name, body) {
  const started = Date.now();
  await body();
  console.log(`ok ${name} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
}

// Every step has to be seen running or done on the page, in whichever tab and on whichever peer.
async function finished(tabs, seen) {
  for (const tab of tabs) await until(tab, "job-status", "^(done|failed)");
  for (const tab of tabs) assert.equal(await tab.text("job-status"), "done, 0 requests failed");
  for (const name of seen) {
    assert.match(await tabs[0].page.locator(`[data-test=step-${name}]`).getAttribute("class"), /done/, name);
  }
}

const loads = { connection: load(false), keepalive: load(true) };

try {
  const one = await open("tab 1");
  const two = await open("tab 2");
  const tabs = [one, two];
  const base = { label: await one.text("label"), node: await one.text("node"), version: await one.text("version") };

  await step("the counter counts", async () => {
    for (let i = 0; i < 5; i++) await one.page.click("[data-test=count]");
    for (const tab of tabs) await until(tab, "number", "^5$");
    await one.shot("1-start.png");
  });

  await step("deploy by a click: the views come back by themselves, and the progress goes on", async () => {
    const before = tabs.map((tab) => tab.socket());
    await one.page.click("[data-test=deploy-high-five]");
    await until(two, "job-status", "compile|assemble");
    await one.shot("2-building.png");
    await until(two, "job-status", "boot|health|cutover|drain|stop|finish|done");
    for (const tab of tabs) await until(tab, "label", "^High five$");
    await finished(tabs, ["compile", "assemble", "tar", "verify", "stage", "boot", "health", "cutover", "drain", "stop", "finish"]);
    for (const tab of tabs) {
      assert.notEqual(await tab.text("node"), base.node);
      assert.equal(await tab.text("version"), "0.1.1");
      assert.equal(await tab.text("active-node"), await tab.text("node"));
      await reconnected(tab, before[tabs.indexOf(tab)]);
      await onlyForward(tab);
    }
    await one.shot("3-deployed.png");
  });

  await step("the counter came along, and counts on", async () => {
    for (const tab of tabs) assert.equal(await tab.text("number"), "5");
    await two.page.click("[data-test=count]");
    for (const tab of tabs) await until(tab, "number", "^6$");
  });

  await step("hot upgrade: the views change in place, on the sockets they have", async () => {
    const node = await one.text("node");
    const before = tabs.map((tab) => tab.socket());
    for (const tab of tabs) await tab.page.evaluate(() => (window.marker = document.querySelector("[data-phx-main]")));
    await two.page.click("[data-test=hot-cheers]");
    for (const tab of tabs) await until(tab, "label", "^Cheers$");
    await finished(tabs, ["compile", "assemble", "tar", "plan", "stage", "suspend", "load", "migrate", "resume", "refresh"]);
    for (const tab of tabs) {
      assert.equal(await tab.text("node"), node);
      assert.equal(await tab.text("version"), "0.1.2");
      assert.equal(await tab.text("number"), "6");
      await sameSocket(tab, before[tabs.indexOf(tab)]);
      assert.ok(await tab.page.evaluate(() => window.marker.isConnected), `${tab.name}'s view was put in anew`);
      await onlyForward(tab);
    }
    await one.shot("4-hot.png");
    await one.page.click("[data-test=count]");
    for (const tab of tabs) await until(tab, "number", "^7$");
  });

  await step("roll back", async () => {
    const node = await one.text("node");
    const before = tabs.map((tab) => tab.socket());
    await one.page.click("[data-test=rollback]");
    for (const tab of tabs) await until(tab, "label", "^High five$");
    await finished(tabs, ["boot", "cutover", "drain", "stop", "finish"]);
    for (const tab of tabs) {
      assert.notEqual(await tab.text("node"), node);
      assert.equal(await tab.text("version"), "0.1.1");
      assert.equal(await tab.text("number"), "7");
      await reconnected(tab, before[tabs.indexOf(tab)]);
    }
    await one.shot("5-rolled-back.png");
  });

  for (const [card, reason] of [["no-compile", /build failed/], ["no-boot", /does not boot/]]) {
    await step(`${card}: says why, and nothing else changes`, async () => {
      const before = [await one.text("node"), await one.text("version"), await one.text("number")];
      const sockets = tabs.map((tab) => tab.socket());
      await one.page.click(`[data-test=deploy-${card}]`);
      await until(one, "job-status", "compile");
      for (const tab of tabs) await until(tab, "job-status", "^failed");
      for (const tab of tabs) assert.match(await tab.text("job-error"), reason);
      assert.deepEqual([await one.text("node"), await one.text("version"), await one.text("number")], before);
      for (const tab of tabs) await sameSocket(tab, sockets[tabs.indexOf(tab)]);
      await one.shot(`6-${card}.png`);
    });
  }

  await step("both tabs ask at once: one deploy, shown in both", async () => {
    const deploys = await one.page.locator("[data-test=history] li").count();
    for (const tab of tabs) await tab.page.waitForSelector("[data-test=deploy-bravo]:enabled");
    const click = (tab, card) => tab.page.evaluate((c) => document.querySelector(`[data-test=deploy-${c}]`).click(), card);
    await Promise.all([click(one, "bravo"), click(two, "ship-it")]);
    for (const tab of tabs) await until(tab, "label", "^(Bravo|Ship it)$");
    await finished(tabs, ["cutover", "finish"]);
    assert.equal(await one.text("label"), await two.text("label"));
    for (const tab of tabs) await until(tab, "number", "^7$");
    assert.equal(await one.page.locator("[data-test=history] li").count(), deploys + 1);
    await one.shot("7-both.png");
  });

  await step("fits a phone", async () => {
    await two.page.setViewportSize({ width: 375, height: 812 });
    const [width, space] = await two.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(width <= space, `${width} pixels wide on ${space}`);
    await two.shot("8-phone.png");
  });

  assert.equal(await one.text("failed"), "0");
  const probed = Number(await one.text("requests"));
  const [connection, keepalive] = [await loads.connection(), await loads.keepalive()];
  for (const tab of tabs) {
    assert.deepEqual(await tab.page.evaluate(() => window.broken), [], `${tab.name} showed a broken page`);
    assert.equal(tab.loads(), 1, `${tab.name} was loaded again`);
  }
  assert.deepEqual(problems, []);
  assert.deepEqual(failed(connection), [], "requests with a connection each");
  assert.deepEqual(failed(keepalive), [], "requests on kept connections");
  const sockets = tabs.reduce((sum, tab) => sum + tab.socket().opened, 0);
  console.log(
    `ok: ${probed} requests of the prober, ${connection.requests} with a connection each and ${keepalive.requests} on kept ones, ` +
      `${requests} of the browser, none failed; ${sockets} websockets, no reload`,
  );
} catch (error) {
  console.error(error.message);
  for (const page of context.pages()) {
    if (out) await page.screenshot({ path: path.join(out, `failure-${context.pages().indexOf(page)}.png`), fullPage: true });
  }
  for (const problem of problems) console.error(problem);
  process.exitCode = 1;
} finally {
  await Promise.all(Object.values(loads).map((stop) => stop()));
  await context.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
