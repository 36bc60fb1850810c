"""Colours and layout of the page, as one style sheet.

Colours are variables, given once for light and once for dark. What waits is warm, what computes is blue.
"""

# Phase -> colour on light, colour on dark.
PHASE_COLOURS = {
    "data_wait": ("#d1490c", "#f2743a"),
    "transfer": ("#f0ae4e", "#f5c06f"),
    "forward": ("#9cc7ee", "#a9d0f2"),
    "backward": ("#2563a8", "#4d8fd6"),
    "communication": ("#c970b0", "#d78bc8"),
    "optimizer": ("#2f9d83", "#49c7a6"),
    "checkpoint": ("#5b4a3f", "#8a6a50"),
    "other": ("#c3c8ce", "#59626c"),
}

# Part of the wall time -> the variable of its colour.
WALL_COLOURS = {"trained": "backward", "redone": "data_wait", "evaluated": "optimizer", "rest": "other"}

# Pass of a convolution -> the same.
PASS_COLOURS = {"forward": "forward", "input_gradient": "backward", "weight_gradient": "optimizer"}

_LIGHT = {
    "page": "#f6f6f3", "card": "#ffffff", "ink": "#1c2126", "muted": "#5f6873", "line": "#e3e4e1",
    "grid": "#ebedee",
    "train": "#2f6db3", "val": "#d1490c", "good": "#1d7a5f", "warn": "#9a6200", "bad": "#b3261e",
    "move": "#8a3f86",
    "soft": "#f3f4f2", "faint": ".4", "hover": "rgb(30 50 80 / 0.07)",
}  # fmt: skip
_DARK = {
    "page": "#121518", "card": "#1a1e22", "ink": "#e4e7ea", "muted": "#98a2ad", "line": "#2b3138",
    "grid": "#272d33",
    "train": "#6aa9ea", "val": "#f2874f", "good": "#4cc29b", "warn": "#e3ab4b", "bad": "#ff7b70",
    "move": "#cf8bca",
    "soft": "#20252a", "faint": ".55", "hover": "rgb(200 220 255 / 0.09)",
}  # fmt: skip

_LAYOUT = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%;font-variant-numeric:tabular-nums}
main{max-width:1160px;margin:0 auto;padding:40px 24px 64px}
header{margin-bottom:28px}
.brand{color:var(--muted);font-size:13px;letter-spacing:.02em}
h1{font-size:30px;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:2px 0 6px;
overflow-wrap:anywhere}
h2{font-size:19px;font-weight:650;letter-spacing:-.01em;margin:44px 0 14px}
h3{font-size:14px;font-weight:600;margin:0 0 10px}
.about{color:var(--muted);margin:0}
.status{display:inline-block;vertical-align:middle;margin-left:10px;padding:3px 11px;border-radius:99px;
font-size:13px;font-weight:600;letter-spacing:0;border:1px solid currentColor}
.finished{color:var(--good)}.stopped{color:var(--warn)}.failed{color:var(--bad)}
.unfinished{color:var(--train)}
.banner{margin:18px 0 0;padding:12px 16px;border-radius:8px;background:var(--card);
border:1px solid var(--line);
border-left:4px solid currentColor;overflow-wrap:anywhere}
.banner p{color:var(--ink);margin:0;white-space:pre-wrap}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:1px;background:var(--line);
border:1px solid var(--line);
border-radius:10px;overflow:hidden;margin:0}
.tiles div{background:var(--card);padding:15px 18px 13px;min-width:0}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:0}
.tiles .value{font-size:25px;line-height:1.3;font-weight:600;letter-spacing:-.015em}
.tiles .more{color:var(--muted);font-size:13px}
.grid2{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px}
.top{align-items:start}.tiles+.grid2,.tiles+.card{margin-top:18px}
.advice{margin:12px 0 0}
.command{background:var(--soft);border-radius:6px;padding:10px 12px;margin-top:8px;
white-space:pre-wrap;overflow-wrap:anywhere}
.card{display:flex;flex-direction:column;background:var(--card);border:1px solid var(--line);
border-radius:10px;padding:16px 18px;margin:0;min-width:0}
section>.card{margin-top:18px}h2+.card{margin-top:0}
figcaption{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 14px;margin-bottom:8px}
figcaption h3{margin:0 auto 0 0}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px}
.key{color:var(--muted);font-size:12.5px;white-space:nowrap}
.key svg{width:20px;height:10px;margin-right:5px;overflow:visible}
.note{color:var(--muted);font-size:13px;margin:8px 0 0}
.none{color:var(--muted);margin:0}
svg.plot{display:block;width:100%;max-width:660px;height:auto;margin:0 auto auto;overflow:visible}
svg text{font-size:11.5px;fill:var(--muted)}
.stack{display:flex;flex-direction:column;gap:18px;min-width:0}.stack>:first-child{flex:1}
.gridline{stroke:var(--grid)}.axis{stroke:var(--muted);stroke-opacity:.55}
.gridline,.axis{stroke-width:1;vector-effect:non-scaling-stroke;shape-rendering:crispEdges}
.line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round;
vector-effect:non-scaling-stroke}
.raw{stroke:var(--train);stroke-width:1;stroke-opacity:var(--faint)}
.key .raw{stroke-width:2}
.dot.raw{stroke:none;fill:var(--train);fill-opacity:.4}
.train{stroke:var(--train)}.dot.train{fill:var(--train)}
.val{stroke:var(--val)}.dot{stroke:none}.dot.val{fill:var(--val)}
.band{fill:transparent;stroke:none}.band:hover,.bar:hover .band{fill:var(--hover)}
.over .stack{display:flex;flex-direction:column;gap:18px;min-width:0}.stack>:first-child{flex:1}
.gridline{stroke:var(--card);stroke-opacity:.35}
.area{stroke:var(--card);stroke-width:.8;vector-effect:non-scaling-stroke}
.bar rect:last-child{fill:var(--train)}.bar.tail rect:last-child{fill:var(--val)}
.mark line{stroke:currentColor;stroke-width:1.2;stroke-dasharray:3 3;vector-effect:non-scaling-stroke}
.mark path{fill:currentColor}.mark text{fill:var(--ink);font-weight:600;paint-order:stroke;
stroke:var(--card);
stroke-width:3px}
.bad{color:var(--bad)}.warn{color:var(--warn)}.move{color:var(--move)}.calm{color:var(--muted)}
.mark.calm line{stroke-dasharray:none;stroke-opacity:.6}
svg.shares{display:block;width:100%;height:26px;border-radius:5px;overflow:hidden}
.shares rect{stroke:var(--card);stroke-width:1.5;vector-effect:non-scaling-stroke}
.shares rect:hover{opacity:.82}
.one:hover rect{opacity:.75}svg .one text{font-size:10px}svg .name{font-size:11px}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:9px;vertical-align:-1px}
.keys{display:flex;flex-wrap:wrap;gap:4px 26px;list-style:none;padding:0;margin:12px 0 0;font-size:13.5px}
.scroll{overflow-x:auto}
.shares+.scroll{margin-top:8px}.scroll+details{margin-top:12px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{color:var(--muted);font-weight:500;text-align:left;border-bottom:1px solid var(--line);
white-space:nowrap}
th,td{padding:5px 14px 5px 0;vertical-align:top}
th:last-child,td:last-child{padding-right:0}
tbody tr+tr td{border-top:1px solid var(--grid)}
td:first-child{white-space:nowrap}
.num{text-align:right;white-space:nowrap}
.total td{font-weight:600}
.kind{font-weight:600;white-space:nowrap}
.quiet td{color:var(--muted)}.quiet .kind{font-weight:400}
td.text{width:100%;min-width:220px;overflow-wrap:anywhere}
pre{font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;margin:0;
overflow:auto;
white-space:pre;tab-size:2}
td pre{white-space:pre-wrap;background:var(--soft);border-radius:6px;padding:10px 12px;
margin-top:6px;
max-height:320px}
.config pre{max-height:560px}
details summary{cursor:pointer;color:var(--muted);font-size:13px}
details[open]>summary{margin-bottom:8px}
footer{color:var(--muted);font-size:13px;margin-top:44px;padding-top:14px;border-top:1px solid var(--line)}
footer p{margin:0 0 4px}
@media (max-width:1080px){svg text{font-size:13px}}
@media (max-width:900px){.grid2{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:repeat(2,1fr)}
svg text{font-size:10.5px}}
@media (max-width:560px){main{padding:24px 14px 40px}.card{padding:14px}h1{font-size:25px}
.tiles .value{font-size:21px}.tiles div{padding:12px 14px}svg text{font-size:16px}}
@media (max-width:560px){th,td{padding-right:9px}.events thead{display:none}
.events tr{display:flex;flex-wrap:wrap;gap:0 10px;padding:8px 0}
.events tr+tr{border-top:1px solid var(--grid)}
.events tbody td{border:0;padding:0}.events .text{flex-basis:100%;min-width:0}
.events td:nth-child(2)::before{content:"step "}.events td:nth-child(3)::before{content:"attempt "}}
@media print{body{background:#fff}main{max-width:none;padding:0}.card,.tiles{break-inside:avoid}}
"""


def style_sheet() -> str:
    """All rules: the colours of both modes, a fill and a swatch for each part of a bar, the layout."""
    light = _LIGHT | {phase: pair[0] for phase, pair in PHASE_COLOURS.items()}
    dark = _DARK | {phase: pair[1] for phase, pair in PHASE_COLOURS.items()}
    parts = {phase: phase for phase in PHASE_COLOURS} | WALL_COLOURS | PASS_COLOURS
    fills = (f".{part}{{fill:var(--{name});background:var(--{name})}}" for part, name in parts.items())
    return (
        f":root{{color-scheme:light dark;{_variables(light)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{_variables(dark)}}}}}{''.join(fills)}{_LAYOUT}"
    )


def _variables(values: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in values.items())
