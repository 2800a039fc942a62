"""How report.html looks: light and dark, wide and narrow, on a screen and on paper. Colours are those of the charts."""

STYLE = """
:root{color-scheme:light dark;--back:#ffffff;--ink:#1c2530;--faint:#4d5865;--panel:#f4f6f9;--rule:#d3dae2;
--accent:#0a5ca0;--good:#0a6040;--good-back:#e7f6ef;--bad:#9c1616;--bad-back:#fdeceb;--open:#6f4600;--open-back:#fff5de;--mark:#ffe08a;--mark-ink:#1c2530}
@media(prefers-color-scheme:dark){:root{--back:#14181d;--ink:#e6ebf0;--faint:#a9b4c0;--panel:#1c2229;--rule:#3a444f;
--accent:#7cc0f5;--good:#63d8ab;--good-back:#10291f;--bad:#ff9e96;--bad-back:#351817;--open:#f2c46a;--open-back:#2d2411;--mark:#6b5200;--mark-ink:#fff4d0}}
*{box-sizing:border-box}
html{scroll-padding-top:1rem}
body{margin:0;background:var(--back);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
header,nav,main,footer{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.6rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;line-height:1.3}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
p{margin:.4rem 0;max-width:48rem}
a{color:var(--accent)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:2px}
.skip{position:absolute;left:-99rem;top:0;background:var(--back);padding:.6rem 1rem;z-index:9}
.skip:focus{left:.5rem;top:.5rem}
.facts,.more,figcaption,.verdict .note{color:var(--faint)}
.verdict .note{font-size:1rem}
.facts{max-width:none}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;padding:.7rem 0;margin:.9rem 0 0;
border-top:1px solid var(--rule);border-bottom:1px solid var(--rule)}
nav a{display:inline-block;padding:.15rem 0}
.verdict{display:flex;gap:1rem;align-items:flex-start;margin:1.4rem 0;padding:1.1rem 1.3rem;border-radius:.6rem}
.verdict h2{margin:0 0 .15rem}
.verdict p{font-size:1.2rem;line-height:1.45;margin:.2rem 0}
.verdict .icon{flex:none;width:2.6rem;height:2.6rem;fill:none;stroke:currentColor;stroke-width:2.4;
stroke-linecap:round;stroke-linejoin:round}
.sound{background:var(--good-back);border:1px solid var(--good)}
.sound h2,.sound .icon{color:var(--good)}
.defect{background:var(--bad-back);border:4px double var(--bad)}
.defect h2,.defect .icon{color:var(--bad)}
.open{background:var(--open-back);border:2px dashed var(--open)}
.open h2,.open .icon,.unjudged{color:var(--open)}
.unjudged{font-style:italic}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1.2rem;margin:.6rem 0}
dt{color:var(--faint)}
dd{margin:0;font-variant-numeric:tabular-nums}
.scroll{position:relative;overflow:auto;max-width:100%;margin:.7rem 0;border:1px solid var(--rule);border-radius:.5rem;
overflow-wrap:normal}
.scroll.tall{max-height:75vh}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;line-height:1.4}
caption{text-align:left;color:var(--faint);padding:.55rem .6rem}
caption span{display:inline-block;position:sticky;left:.6rem;max-width:calc(100vw - 4rem)}
th,td{padding:.32rem .6rem;text-align:right;vertical-align:top;white-space:nowrap;font-variant-numeric:tabular-nums;
border-top:1px solid var(--rule)}
thead th{background:var(--panel);white-space:normal;min-width:4.5rem;vertical-align:bottom;font-weight:600}
thead tr+tr th{border-top:0;font-weight:400;color:var(--faint)}
thead th.g{text-align:center}
thead{position:sticky;top:0;z-index:2}
th.t,td.t,tbody th{text-align:left}
tbody th{font-weight:500;position:sticky;left:0;background:var(--back);z-index:1}
tbody tr:hover td,tbody tr:hover th{background:var(--panel)}
.wrap{white-space:normal;min-width:16rem;display:block}
small{color:var(--faint);font-size:.85em}
.over{color:var(--bad);font-weight:700}
.yes{color:var(--good);font-weight:700}
mark{background:var(--mark);color:var(--mark-ink);border-bottom:2px solid currentColor;border-radius:2px}
details{border-top:1px solid var(--rule);padding:.15rem 0}
details:last-of-type{border-bottom:1px solid var(--rule)}
summary{cursor:pointer;padding:.45rem .2rem}
figure{margin:1rem 0 1.6rem}
figure svg{display:block;width:100%}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:0 2rem}
.charts figure{margin:.5rem 0}
pre{margin:0;padding:.7rem .8rem;white-space:pre}
footer{margin-top:3rem;padding-top:1rem;padding-bottom:2.5rem;border-top:1px solid var(--rule);color:var(--faint)}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media(max-width:40rem){header,nav,main,footer{padding-left:.9rem;padding-right:.9rem}h1{font-size:1.5rem}
.verdict{padding:.9rem;gap:.7rem}.verdict .icon{width:1.8rem;height:1.8rem}
dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.5rem}
th,td{padding:.3rem .55rem}tbody th{max-width:7.5rem;white-space:normal;overflow-wrap:anywhere}.wrap{min-width:9.5rem}}
@media print{nav,.skip{display:none}body{font-size:9.5pt}.scroll{overflow:visible;max-height:none!important;border:0}
table{font-size:7pt}th,td{padding:.1rem .25rem;white-space:normal}thead,tbody th{position:static}
figure,.verdict,tr{break-inside:avoid}h2,h3,summary{break-after:avoid}}
"""
