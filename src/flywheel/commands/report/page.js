// Draws every figure of the page from the JSON beside it, and again when the scheme turns dark or the width changes.
(() => {
  'use strict';
  const percent = (value, digits = 1) => (100 * value).toFixed(digits) + ' %';
  const MARKS = {finished: 'circle', stopped: 'triangle', unfinished: 'diamond', failed: 'rect'};
  const NAMES = {finished: 'finished', stopped: 'stopped early', unfinished: 'unfinished', failed: 'failed'};
  let colour;

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    colour = Object.fromEntries(['ink', 'soft', 'line', 'card', 'blue', 'orange', 'purple'].map(
      name => [name, style.getPropertyValue('--' + name).trim()]));
  }

  // A tooltip of text nodes: a name can hold anything.
  function told(title, rows) {
    const box = document.createElement('div');
    box.className = 'tip-box';
    const head = document.createElement('b');
    head.textContent = title;
    box.append(head, ...rows.map(row => Object.assign(document.createElement('div'), {textContent: row})));
    return box;
  }

  const label = () => ({color: colour.soft, fontSize: 12});
  const axis = (name, more = {}) => ({
    name, nameLocation: 'middle', nameGap: 28, nameTextStyle: label(), axisLabel: {...label(), hideOverlap: true},
    axisLine: {lineStyle: {color: colour.soft}}, axisTick: {show: false}, splitLine: {lineStyle: {color: colour.line}},
    ...more,
  });
  const base = (trigger, formatter) => ({
    animation: false, aria: {enabled: false}, textStyle: {fontFamily: 'system-ui, sans-serif'},
    grid: {left: 8, right: 16, top: 34, bottom: 30, containLabel: true},
    tooltip: {trigger, formatter, confine: true, backgroundColor: colour.card, borderColor: colour.line,
      textStyle: {color: colour.ink}, axisPointer: {type: 'shadow'}},
    legend: {top: 0, left: 0, itemWidth: 14, itemHeight: 9, itemGap: 16, textStyle: label(), inactiveColor: colour.line},
  });

  const KINDS = {
    history({axes, trials}) {
      let best = -1;
      const judged = trials.filter(t => t.status !== 'failed');  // a failed trial is never published
      const line = judged.map(t => [t.number, best = Math.max(best, t.accuracy)]);
      const lowest = Math.min(...trials.map(t => t.accuracy));
      return {
        ...base('item', ({data, seriesName}) => data.trial && told(`trial ${data.trial.number}, ${seriesName}`, [
          percent(data.trial.accuracy, 2) + (data.trial.bayesian ? ', proposed by the search' : ', given or random'),
          ...params(axes, data.trial)])),
        xAxis: axis('trial', {type: 'value', minInterval: 1, min: 'dataMin', max: 'dataMax', splitLine: {show: false}}),
        yAxis: axis('', {type: 'value', min: Math.floor(5 * lowest) / 5, max: 1,
          axisLabel: {...label(), formatter: value => percent(value, 0)}}),
        series: [
          {type: 'line', name: 'best so far', data: line, step: 'end', symbol: 'none', silent: true,
            lineStyle: {color: colour.purple, width: 2}, itemStyle: {color: colour.purple}},
          ...Object.keys(MARKS).filter(kind => trials.some(t => t.status === kind)).map(kind => ({
            type: 'scatter', name: NAMES[kind], symbol: MARKS[kind], symbolSize: 11,
            itemStyle: {color: {finished: colour.blue, stopped: colour.soft}[kind] || colour.orange},
            data: trials.filter(t => t.status === kind).map(t => ({value: [t.number, t.accuracy], trial: t}))})),
        ],
      };
    },

    parallel({axes, trials: lines}, width) {
      const narrow = width < 560;
      const sorted = [...lines].sort((a, b) => a.best - b.best || a.accuracy - b.accuracy);
      const lowest = Math.min(...lines.map(l => l.accuracy)), range = Math.max(...lines.map(l => l.accuracy)) - lowest || 1;
      const shown = sorted.map(line => ({
        value: [...line.values.map((v, i) => axes[i].kind === 'choice' ? axes[i].options.indexOf(pythonText(v)) : v),
          line.accuracy],
        line,
        lineStyle: line.best ? {color: colour.purple, width: 3.5, opacity: 1}
          : {color: colour.blue, width: 2, opacity: .18 + .72 * (line.accuracy - lowest) / range},
      }));
      const place = align => ({...label(), color: colour.ink, fontSize: narrow ? 10 : 12, lineHeight: 13, align});
      const look = {nameTextStyle: place('center'), axisLine: {lineStyle: {color: colour.soft}},
        nameLocation: 'end', nameGap: 14, axisTick: {show: false}, axisLabel: {...label(), color: colour.ink, fontSize: narrow ? 10 : 12,
          textBorderColor: colour.card, textBorderWidth: 3},
        areaSelectStyle: {width: 16, borderColor: colour.orange, color: colour.orange, opacity: .25}};
      const named = name => narrow ? name.replace(/ /g, '\n') : name;
      return {
        ...base('item', ({data}) => told(`trial ${data.line.number}${data.line.best ? ', the best' : ''}`, [
          percent(data.line.accuracy, 2), ...params(axes, data.line)])),
        legend: undefined, grid: undefined,
        parallel: {left: narrow ? 6 : 12, right: narrow ? 44 : 60, top: narrow ? 56 : 42, bottom: 16},
        parallelAxis: [
          ...axes.map((a, dim) => a.kind === 'choice'
            ? {...look, ...(dim ? {} : {nameTextStyle: place('left')}), dim, name: named(a.name), type: 'category', data: a.options}
            : {...look, ...(dim ? {} : {nameTextStyle: place('left')}), dim, name: named(a.name), type: a.kind, scale: true,
              ...(a.kind === 'log' ? ends(lines.map(l => l.values[dim])) : {}),
              axisLabel: {...look.axisLabel, formatter: short}}),
          {...look, dim: axes.length, name: 'accuracy', type: 'value', scale: true,
            axisLabel: {...look.axisLabel, formatter: value => percent(value, 0)}},
        ],
        series: [{type: 'parallel', data: shown, inactiveOpacity: .04, activeOpacity: .9, smooth: false,
          emphasis: {lineStyle: {width: 4, opacity: 1}}}],
      };
    },

    reliability({confidence, accuracy, count}) {
      const most = Math.max(...count);
      const square = (name, more) => axis(name, {type: 'value', min: 0, max: 1,
        axisLabel: {...label(), formatter: value => percent(value, 0)}, ...more});
      const group = (name, few, fill) => ({type: 'scatter', name, itemStyle: {color: fill},
        data: confidence.map((c, i) => ({value: [c, accuracy[i]], count: count[i]})).filter(p => (p.count < 10) === few),
        symbolSize: (_, {data}) => 7 + 15 * Math.sqrt(data.count / most)});
      return {
        ...base('item', ({data, seriesName}) => data.count && told(`${data.count.toLocaleString('en')} images, ${seriesName}`,
          [`confidence ${percent(data.value[0])}`, `accuracy ${percent(data.value[1])}`])),
        xAxis: square('confidence'), yAxis: square('', {nameGap: 40}),
        series: [
          {type: 'line', name: 'perfect', data: [[0, 0], [1, 1]], symbol: 'none', silent: true,
            lineStyle: {color: colour.soft, type: 'dashed', width: 1}, itemStyle: {color: colour.soft}},
          group('10 or more images', false, colour.blue), group('fewer', true, colour.soft)],
      };
    },

    confidence({edges, right, wrong}) {
      const bars = (name, counts, fill) => ({type: 'bar', name, data: counts, itemStyle: {color: fill},
        barCategoryGap: '12%', barGap: '0%'});
      const bins = right.map((_, i) => `${percent(edges[i], 0)} to ${percent(edges[i + 1], 0)}`);
      return {
        ...base('axis', items => told(bins[items[0].dataIndex], items.map(i => `${i.value} ${i.seriesName}`))),
        xAxis: axis('confidence', {type: 'category', data: edges.slice(0, -1).map(edge => percent(edge, 0)),
          axisLabel: {...label(), interval: 4}}),
        yAxis: axis('', {type: 'log', min: .5, logBase: 10, axisLabel: {...label(), formatter: v => v < 1 ? '' : v}}),
        series: [bars('right', right.map(n => n || null), colour.blue),
          bars('wrong', wrong.map(n => n || null), colour.orange)],
      };
    },

    monitor({models, samples, promotions}, width) {
      const legendRows = Math.ceil((2 * models.length + 1) * 240 / width);
      const times = models.flatMap(({rows}) => rows.map(row => Date.parse(row[0])));
      const seconds = Math.max(...times) - Math.min(...times) < 600_000 ? {formatter: '{HH}:{mm}:{ss}'} : {};
      const hues = [colour.blue, colour.orange, colour.soft];
      const dashed = {width: 1, type: 'dashed'};
      return {
        ...base('item', ({value, data}) => told(`${value[0].slice(0, 16).replace('T', ' ')} UTC`, data.rows ||
          [`presumed accuracy ${percent(value[1])}`, `${value[2].toLocaleString('en')} predictions`])),
        useUTC: true,
        grid: {left: 8, right: 16, top: 14 + 20 * legendRows, bottom: 30, containLabel: true},
        xAxis: axis('time (UTC)', {type: 'time', splitLine: {show: false}, axisLabel: {...label(), hideOverlap: true, ...seconds}}),
        yAxis: axis('', {type: 'value', scale: true, max: 1, axisLabel: {...label(), formatter: v => percent(v, 0)}}),
        series: [
          ...models.flatMap(({name, rows, lowest}, i) => [
            {type: 'line', name: `presumed, ${name}`, data: rows, symbolSize: 7, color: hues[i % 3],
              ...(i ? {} : {markLine: {symbol: 'none', silent: true, animation: false, label: {show: false},
                data: promotions.map(at => ({xAxis: at, lineStyle: {...dashed, color: colour.ink}}))}})},
            {type: 'line', name: `harm is below, ${name}`, data: [rows[0], rows[rows.length - 1]].map(r => [r[0], lowest]),
              symbol: 'none', silent: true, color: hues[i % 3], lineStyle: dashed}]),
          {type: 'scatter', name: 'by labels', symbol: 'diamond', symbolSize: 14, color: colour.purple,
            data: samples.map(({made, accuracy, interval, n}) => ({value: [made, accuracy], rows: [
              `${percent(accuracy)} by ${n} labels`, interval[0] < interval[1]
                ? `95 % interval ${percent(interval[0])} to ${percent(interval[1])}` : 'of every image that could be drawn']}))},
        ],
      };
    },

    latency({edges, count, p50, p95, p99}) {
      const place = value => {  // where a value lies among bins that are equally wide on a logarithmic axis
        const i = edges.findIndex((edge, k) => value < edges[k + 1]);
        return i < 0 ? count.length - 1 : i;
      };
      const line = (name, value, fill, row) => ({xAxis: place(value), lineStyle: {color: fill, type: 'solid', width: 1.5},
        label: {formatter: `${name} ${value.toFixed(1)}`, color: fill, position: 'end', fontSize: 11, distance: 4 + 14 * row}});
      return {
        ...base('axis', ([item]) => told(`${edges[item.dataIndex].toFixed(1)} to ${edges[item.dataIndex + 1].toFixed(1)} ms`,
          [`${item.value} answers`])),
        legend: undefined,
        grid: {left: 8, right: 24, top: 50, bottom: 30, containLabel: true},
        xAxis: axis('ms, logarithmic', {type: 'category', data: edges.slice(0, -1).map(edge => String(+edge.toPrecision(2)))}),
        yAxis: axis('', {type: 'value', minInterval: 1}),
        series: [{type: 'bar', data: count, barCategoryGap: '8%', itemStyle: {color: colour.blue},
          markLine: {symbol: 'none', silent: true, animation: false, data: [
            line('p50', p50, colour.ink, 0), line('p95', p95, colour.purple, 1), line('p99', p99, colour.orange, 2)]}}],
      };
    },
  };

  const short = value => typeof value === 'number' ? String(+value.toPrecision(3)) : String(value);
  const params = (axes, trial) => axes.map((axis, i) => `${axis.name} ${short(trial.values[i])}`);
  const pythonText = value => typeof value === 'boolean' ? (value ? 'True' : 'False') : String(value);
  const ends = values => ({min: Math.min(...values), max: Math.max(...values)});

  function drawAll(width) {
    readColours();
    for (const figure of document.querySelectorAll('figure.plot')) {
      const place = figure.querySelector('.chart');
      const {kind, ...data} = JSON.parse(figure.querySelector('script').textContent);
      place.chart?.dispose();
      place.chart = echarts.init(place, null, {renderer: 'svg', width});
      place.chart.setOption(KINDS[kind](data, width ?? place.clientWidth));
    }
    document.documentElement.dataset.drawn = String(1 + Number(document.documentElement.dataset.drawn || 0));
  }

  let width = innerWidth, waiting;
  drawAll();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawAll());
  addEventListener('beforeprint', () => drawAll(640));  // pixels, of a sheet of A4 or letter
  addEventListener('afterprint', () => drawAll());
  addEventListener('resize', () => {
    if (innerWidth === width) return;  // a phone's address bar comes and goes
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => drawAll(), 100);
  });
})();
