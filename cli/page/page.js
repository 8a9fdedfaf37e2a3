"use strict";
// Draws the pictures of a report from the data in the page, in the colours of its style sheet.  Names come from
// databases: they are handed to the canvas as text, and never become HTML.
(() => {
  const data = JSON.parse(document.getElementById("pictures").textContent);
  const charts = new Map();
  const root = document.documentElement;
  root.dataset.scripts = "on";

  // ---- text

  const units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
  function sizeText(bytes) {
    let unit = 0;
    while (Math.abs(bytes) >= 10240 && unit < units.length - 1) {
      bytes /= 1024;
      unit += 1;
    }
    return `${Math.round(bytes)} ${units[unit]}`;
  }
  function timeText(seconds) {
    return new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");
  }
  function durationText(seconds) {
    const whole = Math.round(seconds);
    const two = (number) => String(number).padStart(2, "0");
    return `${Math.floor(whole / 3600)}:${two(Math.floor((whole % 3600) / 60))}:${two(whole % 60)}`;
  }
  function startText(id) {
    return id.replace(/^\d{4}(\d\d)(\d\d)T(\d\d)(\d\d).*/, "$1-$2 $3:$4");
  }
  function shortened(text, most) {
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
  }
  function lsnNumber(text) {
    const [high, low] = text.split("/");
    return (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`);
  }
  function lsnText(value) {
    return `${(value >> 32n).toString(16)}/${(value & 0xffffffffn).toString(16)}`.toUpperCase();
  }

  // ---- colours

  function colours() {
    const style = getComputedStyle(root);
    const names = ["paper", "panel", "ink", "faint", "line", "accent", "full", "incremental", "reach", "hole", "summary",
      "mark", "cold", "hot"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }
  function channels(colour) {
    return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  }
  function between(from, to, share) {
    const [one, other] = [channels(from), channels(to)];
    return `rgb(${one.map((value, index) => Math.round(value + (other[index] - value) * share)).join(",")})`;
  }
  // Told apart by people who see few colours too; each has a pattern besides.
  const light = ["#1f5fbf", "#b3560f", "#2f8f83", "#7a4fb0", "#8a7400", "#b0306a", "#3f7f2f", "#0f7ea8", "#8f4a3a",
    "#5a6a8a", "#6f6f20", "#9aa1ad"];
  const dark = ["#6ea5f8", "#f0a85a", "#4fc1b0", "#b79df5", "#d8c24a", "#f08ab8", "#8fd07a", "#62c6ea", "#e09a88",
    "#a3b4d6", "#c4c46a", "#7b8494"];
  function isDark() {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  // ---- what all pictures have in common

  function base(c) {
    return {
      animation: false,
      useUTC: true,
      backgroundColor: "transparent",
      textStyle: { color: c.ink, fontFamily: getComputedStyle(document.body).fontFamily },
      grid: { left: 32, right: 28, top: 40, bottom: 28, containLabel: true },
      tooltip: {
        // Text on the canvas: no HTML is made of names, and the page allows no styles that come with it.
        renderMode: "richText",
        confine: true,
        backgroundColor: c.panel,
        borderColor: c.line,
        textStyle: { color: c.ink, fontSize: 12 },
      },
      legend: { top: 4, textStyle: { color: c.ink }, inactiveColor: c.faint, type: "scroll", pageTextStyle: { color: c.ink } },
      aria: { enabled: true, label: { enabled: false }, decal: { show: true } },
    };
  }
  // Without patterns: where place or a dashed edge tells what is what.
  const plain = { enabled: true, label: { enabled: false } };
  function axis(c, more) {
    return {
      axisLabel: { color: c.faint, hideOverlap: true },
      axisLine: { lineStyle: { color: c.line } },
      splitLine: { lineStyle: { color: c.line } },
      nameTextStyle: { color: c.faint, align: "left" },
      ...more,
      ...(more.axisLabel ? { axisLabel: { color: c.faint, hideOverlap: true, ...more.axisLabel } } : {}),
    };
  }
  function along(c, more) {
    return axis(c, { ...more, axisLabel: { alignMinLabel: "left", alignMaxLabel: "right", ...more.axisLabel } });
  }
  // Sizes have ticks at round numbers of their units.
  function sizes(c, values) {
    const most = Math.max(...values, 1);
    const step = 2 ** Math.max(0, Math.ceil(Math.log2(most / 5)));
    return along(c, { type: "value", min: 0, max: Math.ceil(most / step) * step, interval: step,
      axisLabel: { formatter: sizeText } });
  }
  function rows(c, names, more) {
    return axis(c, {
      type: "category",
      data: names,
      inverse: true,
      axisTick: { show: false },
      axisLabel: { width: Math.min(230, document.body.clientWidth * 0.3), overflow: "truncate", margin: 14 },
      ...more,
    });
  }
  // A bar from one value to another in a row; the data are [row, from, to, ...].
  function bar(share, style) {
    return (params, api) => {
      const row = api.value(0);
      const [left, middle] = api.coord([api.value(1), row]);
      const right = api.coord([api.value(2), row])[0];
      const height = api.size([0, 1])[1] * share.height;
      const top = middle - api.size([0, 1])[1] * 0.5 + api.size([0, 1])[1] * share.top;
      const shape = echarts.graphic.clipRectByRect(
        { x: left, y: top, width: Math.max(right - left, 3), height },
        params.coordSys,
      );
      return shape && { type: "rect", shape, style: style(params.dataIndex) };
    };
  }
  function said(params) {
    return params.data && params.data.says ? params.data.says : params.name;
  }

  // ---- pictures: each returns its options, how high it is, and what can be gone through

  function drawWindows(c) {
    const chains = [...data.chains].reverse();
    const reach = [], holes = [], ticks = [];
    const ended = new Map(data.backups.map((backup) => [backup.backup_id, backup]));
    chains.forEach((chain, row) => {
      const pinned = chain.pinned_ids.length ? ", pinned" : "";
      for (const span of chain.spans) {
        const range = span.start_lsn === span.end_lsn
          ? `the point ${timeText(span.start_s)} alone` : `${timeText(span.start_s)} to ${timeText(span.end_s)}`;
        reach.push({ value: [row, span.start_s * 1000, span.end_s * 1000],
          says: `${chain.chain_id}${pinned}: recoverable, ${range}${span.is_exact ? "" : " (estimated)"}` });
      }
      for (const span of chain.holes) {
        holes.push({ value: [row, span.start_s * 1000, span.end_s * 1000],
          says: `${chain.chain_id}: hole, ${timeText(span.start_s)} to ${timeText(span.end_s)}, LSN ${span.start_lsn} to ${span.end_lsn}` });
      }
      for (const id of chain.backup_ids) {
        const backup = ended.get(id);
        if (backup) {
          ticks.push({ value: [backup.finished_s * 1000, row], symbol: backup.kind === "full" ? "diamond" : "circle",
            symbolSize: backup.kind === "full" ? 11 : 7,
            says: `${id}: ${backup.kind}${backup.is_merged ? ", merged" : ""}${backup.is_pinned ? ", pinned" : ""}, ended ${timeText(backup.finished_s)}` });
        }
      }
    });
    const commit = data.newest_commit;
    const line = commit && {
      silent: true, symbol: "none", lineStyle: { color: c.mark, width: 2, type: "solid" },
      label: { color: c.mark, formatter: "newest recoverable commit", position: "start", align: "right" },
      data: [{ xAxis: commit.time_s * 1000 }],
    };
    return {
      height: (commit ? 110 : 86) + 30 * chains.length,
      options: {
        ...base(c),
        aria: plain,
        tooltip: { ...base(c).tooltip, formatter: said },
        grid: { ...base(c).grid, top: commit ? 64 : 40 },
        xAxis: along(c, { type: "time", max: (range) => Math.max(range.max, commit ? commit.time_s * 1000 : 0) }),
        yAxis: rows(c, chains.map((chain) => chain.chain_id)),
        series: [
          { name: "recoverable", type: "custom", itemStyle: { color: c.reach }, encode: { x: [1, 2], y: 0 }, data: reach,
            renderItem: bar({ top: 0.18, height: 0.64 }, () => ({ fill: c.reach })), markLine: line || undefined },
          { name: "hole", type: "custom", itemStyle: { color: c.hole }, encode: { x: [1, 2], y: 0 }, data: holes,
            renderItem: bar({ top: 0.3, height: 0.4 }, () => ({ fill: c.hole, stroke: c.ink, lineDash: [4, 3], lineWidth: 1 })) },
          { name: "backup", type: "scatter", itemStyle: { color: c.paper, borderColor: c.ink, borderWidth: 1.5, decal: { symbol: "none" } },
            data: ticks },
        ],
      },
      items: [...reach, ...holes, ...ticks].map((item) => item.says),
      places: [...reach.map((_, index) => [0, index]), ...holes.map((_, index) => [1, index]), ...ticks.map((_, index) => [2, index])],
    };
  }

  function drawCoverage(c) {
    const all = data.timelines.flatMap((each) => [...each.wal, ...each.wal_holes, ...each.summaries, ...each.summary_holes]);
    // Offsets from the first one: positions themselves need more bits than a number has.
    const first = all.map((span) => lsnNumber(span.start_lsn)).reduce((one, other) => (one < other ? one : other), 1n << 64n);
    const offset = (text) => Number(lsnNumber(text) - first);
    const kinds = [
      ["WAL", "wal", c.full, { top: 0.08, height: 0.4 }, {}],
      ["WAL missing", "wal_holes", c.hole, { top: 0.08, height: 0.4 }, { stroke: c.ink, lineDash: [4, 3], lineWidth: 1 }],
      ["summaries", "summaries", c.summary, { top: 0.54, height: 0.3 }, {}],
      ["not summarised", "summary_holes", c.mark, { top: 0.54, height: 0.3 }, { stroke: c.ink, lineDash: [2, 2], lineWidth: 1 }],
    ];
    const series = kinds.map(([name, member, colour, share, more]) => ({
      name, type: "custom", itemStyle: { color: colour }, encode: { x: [1, 2], y: 0 },
      renderItem: bar(share, () => ({ fill: colour, ...more })),
      data: data.timelines.flatMap((timeline, row) => timeline[member].map((span) => ({
        value: [row, offset(span.start_lsn), offset(span.end_lsn)],
        says: `timeline ${timeline.timeline}: ${name}, ${span.start_lsn} to ${span.end_lsn}, about ${timeText(span.start_s)} to ${timeText(span.end_s)}`,
      }))),
    }));
    const switches = data.timelines.flatMap((timeline, row) => (timeline.switch_lsn && lsnNumber(timeline.switch_lsn) >= first
      ? [{ value: [offset(timeline.switch_lsn), row],
        says: `timeline ${timeline.timeline} began at ${timeline.switch_lsn} on timeline ${timeline.parent}` }] : []));
    series.push({ name: "began here", type: "scatter", symbol: "triangle", symbolSize: 13,
      itemStyle: { color: c.mark, borderColor: c.paper, borderWidth: 1, decal: { symbol: "none" } }, data: switches });
    return {
      height: 110 + 56 * data.timelines.length,
      options: {
        ...base(c),
        aria: plain,
        tooltip: { ...base(c).tooltip, formatter: said },
        xAxis: along(c, { type: "value", min: 0, max: "dataMax",
          axisLabel: { formatter: (value) => lsnText(first + BigInt(Math.round(value))) } }),
        yAxis: rows(c, data.timelines.map((timeline) => `timeline ${timeline.timeline}`)),
        series,
      },
      items: series.flatMap((one) => one.data.map((item) => item.says)),
      places: series.flatMap((one, number) => one.data.map((_, index) => [number, index])),
    };
  }

  function drawChurn(c) {
    const churn = data.churn;
    const start = (bucket) => (churn.start_s + bucket * churn.bucket_s) * 1000;
    const rest = new Map(churn.total);
    const palette = isDark() ? dark : light;
    const series = churn.stacked.map((relation, number) => ({
      name: shortened(relation.name, 40), full: relation.name, colour: palette[number], counts: new Map(relation.by_bucket),
    }));
    for (const one of series) {
      for (const [bucket, count] of one.counts) rest.set(bucket, rest.get(bucket) - count);
    }
    if ([...rest.values()].some((count) => count > 0)) {
      series.push({ name: "all others", full: "all others", colour: palette[palette.length - 1], counts: rest });
    }
    const seen = new Set();
    for (const one of series) {
      // Series are told apart by their names.
      while (seen.has(one.name)) one.name += "\u2032";
      seen.add(one.name);
    }
    const labels = Array.from({ length: churn.bucket_count }, (_, bucket) => 
      timeText(start(bucket) / 1000).slice(0, churn.bucket_s < 60 ? 19 : 16));
    const marks = data.backups.filter((backup) => backup.finished_s !== null).map((backup) => {
      const bucket = Math.min(churn.bucket_count - 1, Math.floor((backup.finished_s - churn.start_s) / churn.bucket_s));
      return { bucket, backup };
    }).filter((mark) => mark.bucket >= 0);
    const most = Math.max(...churn.total.map(([, count]) => count), 1);
    const drawn = series.map((one) => ({
      name: one.name, type: "bar", stack: "all",
      itemStyle: one.full === "all others" ? { color: one.colour, decal: { symbol: "none" } } : { color: one.colour }, barCategoryGap: "8%",
      data: labels.map((label, bucket) => ({ value: one.counts.get(bucket) || 0,
        says: `${label}, ${one.full}: ${one.counts.get(bucket) || 0} block changes` })),
    }));
    drawn.push({ name: "backup ended", type: "scatter", symbol: "triangle", symbolSize: 9,
      itemStyle: { color: c.ink, decal: { symbol: "none" } },
      data: marks.map(({ bucket, backup }) => ({ value: [bucket, most * 1.06],
        says: `${backup.backup_id} ended ${timeText(backup.finished_s)}` })) });
    const totals = [...churn.total].map(([bucket, count]) => {
      const top = series.map((one) => [one.counts.get(bucket) || 0, one.full]).sort((one, other) => other[0] - one[0])[0];
      return { place: [series.findIndex((one) => one.full === top[1]), bucket],
        text: `${labels[bucket]}: ${count} block changes, most of ${top[1]} (${top[0]})` };
    });
    return {
      height: 380,
      options: {
        ...base(c),
        grid: { ...base(c).grid, top: 56 },
        tooltip: { ...base(c).tooltip, formatter: said },
        xAxis: along(c, { type: "category", data: labels }),
        yAxis: axis(c, { type: "value", name: "block changes" }),
        series: drawn,
      },
      items: totals.map((one) => one.text),
      places: totals.map((one) => one.place),
    };
  }

  function drawHeat(c) {
    const heated = data.churn.heated;
    const most = Math.max(...heated.flatMap((relation) => relation.heat), 1);
    const share = (count) => Math.log1p(count) / Math.log1p(most);
    const cells = [];
    heated.forEach((relation, row) => relation.heat.forEach((count, column) => {
      const width = 100 / relation.heat.length;
      const from = column * relation.heat_width;
      cells.push({ value: [row, column * width, (column + 1) * width, count],
        says: `${relation.name}: blocks ${from} to ${from + relation.heat_width - 1}, ${count} changes` });
    }));
    const style = (index) => {
      const count = cells[index].value[3];
      return { fill: count ? between(c.cold, c.hot, share(count)) : c.paper };
    };
    return {
      height: 110 + 24 * heated.length,
      options: {
        ...base(c),
        aria: plain,
        legend: { show: false },
        tooltip: { ...base(c).tooltip, formatter: said },
        visualMap: { type: "continuous", min: 0, max: 1, dimension: 4, seriesIndex: [], orient: "horizontal", right: 28, top: 2,
          itemHeight: 140, itemWidth: 12, text: [`${most} changes`, "none"], textStyle: { color: c.faint }, hoverLink: false,
          inRange: { color: [c.cold, c.hot] } },
        xAxis: along(c, { type: "value", min: 0, max: 100, axisLabel: { formatter: "{value} %" },
          name: "of the relation", nameLocation: "middle", nameGap: 26 }),
        yAxis: rows(c, heated.map((relation) => relation.name)),
        grid: { ...base(c).grid, bottom: 40 },
        series: [{ name: "changes", type: "custom", encode: { x: [1, 2], y: 0 }, data: cells,
          renderItem: bar({ top: 0.06, height: 0.88 }, style) }],
      },
      items: cells.map((cell) => cell.says),
      places: cells.map((_, index) => [0, index]),
    };
  }

  function drawBackups(c) {
    const backups = data.backups.filter((backup) => backup.stored_bytes !== null);
    const ids = backups.map((backup) => backup.backup_id);
    const sized = (kind, colour) => ({
      name: `${kind}, stored`, type: "bar", barGap: "-100%", itemStyle: { color: colour },
      data: backups.map((backup) => (backup.kind === kind ? { value: Math.max(1, backup.stored_bytes), says: words(backup) } : null)),
    });
    const words = (backup) => `${backup.backup_id} (${backup.state}): ${sizeText(backup.stored_bytes)} stored, `
      + `${sizeText(backup.size_bytes)} restored, took ${durationText(backup.finished_s - backup.started_s)}`;
    const bytes = backups.map((backup) => Math.max(1, backup.stored_bytes));
    const stored = { least: Math.min(...bytes) / 1.001, most: Math.max(...bytes) };
    const power = (round, value) => 16 ** Math.max(0, round(Math.log(value) / Math.log(16)));
    const ends = Math.max(0, 100 - (100 * 60) / backups.length);
    return {
      height: backups.length > 60 ? 420 : 384,
      options: {
        ...base(c),
        tooltip: { ...base(c).tooltip, formatter: said },
        grid: [{ left: 32, right: 28, top: 60, height: 160, containLabel: true },
          { left: 32, right: 28, top: 262, height: 84, containLabel: true }],
        xAxis: [axis(c, { type: "category", data: ids, axisLabel: { show: false } }),
          axis(c, { type: "category", data: ids, gridIndex: 1, axisLabel: { formatter: startText } })],
        yAxis: [axis(c, { type: "log", logBase: 16, min: power(Math.floor, stored.least), max: power(Math.ceil, stored.most), name: "stored",
            axisLabel: { formatter: sizeText } }),
          axis(c, { type: "value", name: "seconds", gridIndex: 1, splitNumber: 3 })],
        dataZoom: backups.length > 60 ? [{ type: "slider", xAxisIndex: [0, 1], start: ends, end: 100, bottom: 8, height: 26,
          textStyle: { color: c.faint }, borderColor: c.line, labelFormatter: (_, id) => startText(String(id)) }] : [],
        series: [sized("full", c.full), sized("incremental", c.incremental),
          { name: "duration", type: "line", xAxisIndex: 1, yAxisIndex: 1, symbolSize: 5, itemStyle: { color: c.mark },
            lineStyle: { color: c.mark }, showSymbol: backups.length < 200,
            data: backups.map((backup) => ({ value: Math.max(0, backup.finished_s - backup.started_s), says: words(backup) })) }],
      },
      items: backups.map(words),
      places: backups.map((backup, index) => [backup.kind === "full" ? 0 : 1, index]),
    };
  }

  // A bar with its size for each name, and nothing else.
  function sizeBars(c, height, names, values) {
    return {
      height,
      options: {
        ...base(c),
        aria: plain,
        legend: { show: false },
        tooltip: { ...base(c).tooltip, formatter: said },
        grid: { ...base(c).grid, top: 12, right: 90 },
        xAxis: sizes(c, values.map((one) => one.value)),
        yAxis: rows(c, names),
        series: [{ type: "bar", data: values, barMaxWidth: 18,
          label: { show: true, position: "right", color: c.ink, formatter: (params) => sizeText(params.value) } }],
      },
      items: values.map((value) => value.says),
      places: values.map((_, index) => [0, index]),
    };
  }

  function drawForecast(c) {
    const before = data.backups.filter((backup) => backup.kind === "incremental" && backup.stored_bytes !== null).slice(-10);
    const names = [...before.map((backup) => backup.backup_id), "the next one"];
    const values = before.map((backup) => ({ value: backup.stored_bytes, itemStyle: { color: c.incremental },
      says: `${backup.backup_id}: ${sizeText(backup.stored_bytes)} stored` }));
    values.push({ value: data.forecast.size_bytes,
      itemStyle: { color: c.mark, borderColor: c.ink, borderType: "dashed", borderWidth: 1.5 },
      says: `the next one: ${sizeText(data.forecast.size_bytes)} as of ${data.forecast.end_lsn}` });
    return sizeBars(c, 90 + 28 * names.length, names, values);
  }

  function drawLag(c) {
    const server = data.server;
    const known = [["behind the server", server.lag_bytes, c.full], ["held back by the slot", server.retained_bytes, c.mark],
      ["left until it is given up", server.safe_wal_bytes, c.reach],
      ["waits to be stored", data.receiver.spooled_bytes, c.summary]].filter(([, value]) => value !== null);
    const values = known.map(([name, value, colour]) => ({ value, itemStyle: { color: colour }, says: `${name}: ${sizeText(value)}` }));
    return sizeBars(c, 70 + 34 * known.length, known.map(([name]) => name), values);
  }

  // ---- the page

  const pictures = { windows: drawWindows, coverage: drawCoverage, churn: drawChurn, heat: drawHeat, backups: drawBackups,
    forecast: drawForecast, lag: drawLag };

  function draw(name) {
    const place = document.getElementById(`${name}-picture`);
    if (!place) return;
    const picture = pictures[name](colours());
    place.style.height = `${picture.height}px`;
    const known = charts.get(name);
    if (known) known.chart.dispose();
    const chart = echarts.init(place, null, { renderer: "canvas" });
    chart.setOption(picture.options);
    charts.set(name, { chart, place, ...picture, at: known ? known.at : -1 });
  }
  function drawAll() {
    for (const name of Object.keys(pictures)) {
      try {
        draw(name);
      } catch (error) {
        // The others are drawn all the same.
        document.getElementById(`${name}-read`).textContent = "This picture cannot be drawn here; the tables hold what it shows.";
        console.error(name, error);
      }
    }
  }
  function goTo(name, index) {
    const one = charts.get(name);
    if (!one.items.length) return;
    one.at = Math.min(one.items.length - 1, Math.max(0, index));
    const [seriesIndex, dataIndex] = one.places[one.at];
    one.chart.dispatchAction({ type: "showTip", seriesIndex, dataIndex });
    document.getElementById(`${name}-read`).textContent = `${one.at + 1} of ${one.items.length}: ${one.items[one.at]}`;
  }
  function steps(event, one) {
    const last = one.items.length - 1;
    const page = Math.max(1, Math.round(one.items.length / 10));
    return { ArrowRight: one.at + 1, ArrowDown: one.at + 1, ArrowLeft: one.at - 1, ArrowUp: one.at - 1,
      PageDown: one.at + page, PageUp: one.at - page, Home: 0, End: last }[event.key];
  }
  for (const name of Object.keys(pictures)) {
    const place = document.getElementById(`${name}-picture`);
    if (!place) continue;
    place.addEventListener("keydown", (event) => {
      const one = charts.get(name);
      if (event.key === "Escape") {
        one.chart.dispatchAction({ type: "hideTip" });
        document.getElementById(`${name}-read`).textContent = "";
        return;
      }
      const index = steps(event, one);
      if (index === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      goTo(name, index);
    });
  }

  function choose(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
    }
    drawAll();
  }
  for (const button of document.querySelectorAll("[data-theme-choice]")) {
    button.addEventListener("click", () => choose(button.dataset.themeChoice));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => charts.forEach((one) => one.chart.resize()), 100);
  });
  // On paper tables are open and colours are those of light paper.
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme || "auto", closed: [...document.querySelectorAll("details:not([open])")] };
    for (const one of before.closed) one.open = true;
    // Paper is narrower than a screen, and no frame is drawn any more once it is measured.
    root.style.setProperty("--picture", "660px");
    choose("light");
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    for (const one of before.closed) one.open = false;
    root.style.removeProperty("--picture");
    choose(before.theme);
    before = null;
  });

  drawAll();
  root.dataset.drawn = "true";
})();
