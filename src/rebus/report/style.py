"""How the page looks: one column of figures on a phone, two on a desk; light and dark by the reader's setting.

Colours: blue and orange of Okabe and Ito 2008, told apart in all common kinds of colour blindness; lines differ by
dash, bars by hatching and verdicts by words too.
"""

CSS = """
:root {
  --paper: #ffffff; --card: #f6f7f9; --ink: #1a1d21; --soft: #5a626c; --rule: #d9dde2;
  --a: #0072b2; --a-soft: #0072b22e; --b: #b85c00; --b-soft: #d55e0030; --good: #00664a; --bad: #a83200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2125; --ink: #e8eaed; --soft: #a3abb5; --rule: #363c43;
    --a: #56b4e9; --a-soft: #56b4e938; --b: #f0a030; --b-soft: #f0a03030; --good: #4fd1a5; --bad: #ff9a70;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 22px; margin: 48px 0 4px; }
h3 { font-size: 17px; margin: 20px 0 4px; }
p { margin: 4px 0 10px; max-width: 72ch; }
a { color: var(--a); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0 0; }
code, pre { font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; background: var(--card); padding: 12px; border-radius: 6px; margin: 8px 0; }
.note, .small, .legend { color: var(--soft); font-size: 14px; }
.missing { color: var(--soft); font-style: italic; }
ul.plain { padding-left: 20px; margin: 8px 0; max-width: 80ch; }
ul.plain li { margin: 6px 0; }

ul.tiles { list-style: none; margin: 20px 0 0; padding: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
.tiles li { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px;
  display: flex; flex-direction: column; }
.tiles .value { font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tiles .value.none { font-size: 17px; color: var(--soft); line-height: 32px; }
.tiles .value small { font-size: 15px; font-weight: 400; color: var(--soft); }
.tiles .title { font-size: 15px; line-height: 1.35; }
.tiles .small { margin-top: 4px; font-size: 13px; line-height: 1.4; }

table { border-collapse: collapse; margin: 10px 0; font-size: 15px; }
th, td { text-align: left; padding: 4px 12px 4px 0; vertical-align: middle; font-weight: 400; }
thead th { color: var(--soft); font-size: 13px; border-bottom: 1px solid var(--rule); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.bars { width: 100%; }
table.bars .wide { width: 52%; }
.scale { display: flex; justify-content: space-between; }
svg { display: block; }
svg.bar { overflow: visible; }
.trough { fill: var(--card); stroke: var(--rule); stroke-width: 1; }
.bar-a { fill: var(--a); }
.crisp { shape-rendering: crispEdges; }
.bar-b { fill: var(--b); }
.bar-dropped { fill: url(#hatch); stroke: var(--b); stroke-width: 1; }
.hatch-key { display: inline-block; width: 18px; height: 10px; border: 1px solid var(--b);
  background: repeating-linear-gradient(45deg, var(--b) 0 2px, transparent 2px 5px); }
.hatch-line { stroke: var(--b); stroke-width: 2.4; }
.whisker { stroke: var(--ink); stroke-width: 2; }
.chance { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 3; }

.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px 36px; align-items: start; }
figure { margin: 8px 0 0; min-width: 0; }
figcaption { font-weight: 650; overflow-wrap: anywhere; }
svg.plot { width: 100%; height: auto; max-width: 540px; margin-top: 6px; }
svg.plot text { fill: var(--soft); font-size: 12.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg.plot text.label { fill: var(--ink); }
line.grid { stroke: var(--rule); stroke-width: 1; }
line.axis { stroke: var(--soft); stroke-width: 1; }
line.threshold { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 5 3; }
polyline { fill: none; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.outline-a { fill: var(--a-soft); stroke: var(--a); stroke-width: 1.8; }
.outline-b { fill: var(--b-soft); stroke: var(--b); stroke-width: 2; stroke-dasharray: 5 2; }
.line-a { stroke: var(--a); stroke-width: 2.2; }
.line-b { stroke: var(--b); stroke-width: 1.8; }
.line-c { stroke: var(--good); stroke-width: 1.8; stroke-dasharray: 6 3; }
.line-d { stroke: var(--soft); stroke-width: 1.8; stroke-dasharray: 2 2; }
.line-e { stroke: var(--bad); stroke-width: 1.8; stroke-dasharray: 8 2 2 2; }
.heldout { fill: var(--paper); stroke: var(--b); stroke-width: 2; }
line.skipped { stroke: var(--bad); stroke-width: 1.6; }
.phase-wait { fill: var(--bad); }
.phase-transfer { fill: url(#hatch); stroke: var(--b); stroke-width: 1; }
.phase-forward { fill: var(--a); }
.phase-backward { fill: var(--a); fill-opacity: .55; }
.phase-communication { fill: var(--b); }
.phase-optimizer { fill: var(--good); }
.phase-saving { fill: var(--good); fill-opacity: .5; }
.phase-other { fill: var(--soft); fill-opacity: .5; }
.dots { fill: var(--a); opacity: .35; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 4px 0 0; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.key { width: 22px; height: 12px; display: inline-block; }
.outline-a-key { background: var(--a-soft); border: 2px solid var(--a); }
.outline-b-key { background: var(--b-soft); border: 2px dashed var(--b); }

ol.strip { list-style: none; margin: 8px 0 0; padding: 0; display: grid; gap: 8px;
  grid-template-columns: repeat(5, minmax(0, 1fr)); }
.broad .strip + .note { margin-top: 16px; }
.strip li { font-size: 12.5px; line-height: 1.3; display: flex; flex-direction: column; overflow-wrap: anywhere; }
.strip img { width: 100%; max-width: 96px; height: auto; background: #fff; border: 1px solid var(--rule);
  border-radius: 6px; }
.strip .q { color: var(--soft); font-variant-numeric: tabular-nums; margin-top: 4px; }
.strip .caption { display: -webkit-box; -webkit-line-clamp: 5; -webkit-box-orient: vertical; overflow: hidden; }
.tiles b, dd b { white-space: nowrap; }
figure.broad { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 36px;
  align-items: start; margin: 14px 0 24px; }
.broad figcaption, .across { grid-column: 1 / -1; }
.across { margin-top: 10px; }
ol.quantiles { list-style: none; margin: 4px 0 0; padding: 0; display: grid; gap: 8px;
  grid-template-columns: repeat(7, minmax(0, 1fr)); }
.quantiles > li > b { font-size: 13px; border-bottom: 1px solid var(--rule); display: block; }
.quantiles .strip, .twins .strip { grid-template-columns: minmax(0, 1fr); }
.quantiles .strip img, .sides .strip img, .twins .strip img { max-width: 72px; }
.quantiles .caption { -webkit-line-clamp: 3; }
dl.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 8px 14px;
  margin: 10px 0 16px; }
.numbers dt { color: var(--soft); font-size: 13px; }
.numbers dd { margin: 0; font-variant-numeric: tabular-nums; }
figure.sides { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 28px; margin: 14px 0 20px; }
.sides figcaption { grid-column: 1 / -1; }
.sides .strip { grid-template-columns: repeat(6, minmax(0, 1fr)); }
ul.twins { list-style: none; margin: 8px 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.twins > li { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px; }
.twins .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); margin: 0; }
.twins p { margin: 6px 0 0; }
.scroll { overflow-x: auto; }
table.heat { font-size: 12px; border-collapse: separate; border-spacing: 1px; font-variant-numeric: tabular-nums; }
.heat th { padding: 2px 8px 2px 0; white-space: nowrap; font-size: 13px; }
.heat thead th { border: 0; padding: 0 2px; text-align: center; }
.heat td { min-width: 32px; padding: 4px 2px; text-align: center; }
.heat .q { display: inline-block; min-width: 18px; color: var(--soft); text-align: right; margin-right: 4px; }
.heat .above { background: color-mix(in srgb, var(--a) calc(var(--r) * 60%), var(--card)); }
.heat .below { background: color-mix(in srgb, var(--b) calc(var(--r) * 60%), var(--card)); }
.heat .own { color: var(--soft); }
.flag, .wrong { color: var(--bad); font-weight: 650; }
.right { color: var(--good); font-weight: 650; }

ul.cards { list-style: none; margin: 12px 0 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); }
.cards > li { display: flex; gap: 14px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 12px; min-width: 0; }
.cards img, .nothing { width: 96px; height: 96px; object-fit: contain; background: #fff; border-radius: 6px;
  flex: none; }
.nothing { color: #555; font-size: 12.5px; display: grid; place-items: center; }
.cards p, .cards dl { margin: 0; }
.question { font-style: italic; color: var(--soft); font-size: 14px; }
.cards dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 10px; font-size: 14.5px; line-height: 1.35; }
.cards dt { color: var(--soft); }
.cards dd { margin: 0; overflow-wrap: anywhere; }
ul.choices { list-style: none; padding: 0; margin: 6px 0 0; font-size: 12.5px; color: var(--soft); line-height: 1.5; }
.choices li { display: inline; }
.choices li + li::before { content: " · "; }

details { margin: 10px 0; }
summary { cursor: pointer; }
.made details { border-bottom: 1px solid var(--rule); margin: 0; padding: 7px 0; }
.made summary span { color: var(--soft); }
footer { margin-top: 48px; color: var(--soft); font-size: 14px; }

@media (max-width: 760px) {
  main { padding: 16px 14px 48px; }
  h1 { font-size: 25px; }
  .grid, figure.broad, figure.sides { grid-template-columns: minmax(0, 1fr); }
  ol.quantiles { grid-template-columns: minmax(0, 1fr); }
  .quantiles .strip { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .sides .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  ul.twins { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  ul.tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tiles li { padding: 10px; }
  .tiles .value { font-size: 21px; }
  table.bars, table.bars tbody { display: block; }
  table.bars thead { display: none; }
  table.bars tr { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: baseline; padding: 5px 0; }
  table.bars th { flex: 1 1 auto; padding: 0; }
  table.bars td { padding: 0; }
  table.bars td.wide { order: 9; flex: 0 0 100%; width: 100%; }
  table.bars td[data-unit]::after { content: " " attr(data-unit); color: var(--soft); font-size: 13px; }
  ul.cards { grid-template-columns: minmax(0, 1fr); }
}
"""

HATCH = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs><pattern id="hatch" width="5" '
    'height="5" patternTransform="rotate(45)" patternUnits="userSpaceOnUse"><line x1="0" y1="0" x2="0" y2="5" '
    'class="hatch-line"/></pattern></defs></svg>'
)
"""Fill for what was dropped: seen without colour."""
