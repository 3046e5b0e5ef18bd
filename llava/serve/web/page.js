() => {
    // What moves in the views of patches: the slider over layers, pointing, clicking, keys. One listener of each kind for
    // the whole page, since views come and go. Data stands in `data-view`; text is set as text, never as HTML.
    const NAMESPACE = "http://www.w3.org/2000/svg";
    const DROPPED = 0, DOMINANT = 1, ANCHOR = 2, STEP = 10;
    const SCALE = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]]; // cividis
    const read = new WeakMap();
    const timers = new WeakMap();

    const viewOf = (element) => element.closest && element.closest(".dv-view[data-view]");
    const dataOf = (view) => {
        if (!read.has(view)) read.set(view, JSON.parse(view.dataset.view));
        return read.get(view);
    };
    const sliderOf = (view) => view.querySelector(".dv-slider");
    const layerOf = (view) => Number(sliderOf(view).value) - 1; // -1 is the picture itself
    const modeOf = (view) => view.querySelector(".dv-modes input:checked").value;
    const isGone = (data, token, layer) => token < 0 || (data.gone[token] > 0 && data.gone[token] <= layer);

    function attentionAt(data, layer) {
        for (let known = layer; known >= 0; known--) if (data.attention[known]) return data.attention[known];
        return null;
    }

    function colour(share) {
        const at = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
        const low = Math.floor(at), high = Math.min(low + 1, SCALE.length - 1);
        const mixed = SCALE[low].map((value, n) => Math.round(value + (SCALE[high][n] - value) * (at - low)));
        return `rgb(${mixed.join(",")})`;
    }

    function draw(view) {
        const data = dataOf(view), layer = layerOf(view), mode = modeOf(view), paid = attentionAt(data, layer);
        const text = layer < 0 ? "the picture itself" : `layer ${layer}, of 0 to ${data.layers - 1}`;
        sliderOf(view).setAttribute("aria-valuetext", text);
        view.querySelector("output").textContent = layer < 0 ? "none: the picture" : `${layer}, of 0 to ${data.layers - 1}`;
        view.classList.toggle("dv-attention", mode === "attention" && layer >= 0);
        let most = 0;
        if (paid) data.units.forEach((unit) => unit.tokens.forEach((token) => { if (token >= 0) most = Math.max(most, paid[token]); }));
        view.querySelectorAll(".dv-map").forEach((map) => {
            const unit = data.units[Number(map.dataset.unit)], alive = new Set();
            map.querySelectorAll(".dv-p").forEach((rect) => {
                const patch = Number(rect.dataset.p), token = unit.tokens[patch];
                let look = "dv-p", fill = rect.dataset.fill || "transparent";
                if (layer < 0) { look += " dv-plain"; fill = "transparent"; }
                else if (token < 0) { look += " dv-dropped"; fill = `url(#${view.id}-v2v)`; }
                else if (isGone(data, token, layer)) { look += " dv-dropped"; fill = `url(#${view.id}-t2v)`; }
                else {
                    look += unit.roles[patch] === DOMINANT ? " dv-kept" : " dv-merged";
                    alive.add(token);
                    if (mode === "attention" && paid) fill = colour(most ? Math.sqrt(paid[token] / most) : 0);
                }
                rect.setAttribute("class", look + (rect.dataset.at ? " dv-chosen" : ""));
                rect.setAttribute("fill", fill);
            });
            map.querySelectorAll(".dv-anchor").forEach((dot) => {
                dot.style.display = layer >= 0 && mode === "kept" && alive.has(Number(dot.dataset.t)) ? "" : "none";
            });
            const count = map.parentElement.querySelector(".dv-count"), all = new Set(unit.tokens.filter((token) => token >= 0));
            count.textContent = layer < 0 ? `${unit.tokens.length} patches` : `${alive.size} of its ${all.size} visual tokens are here`;
        });
        const chosen = view.querySelector(".dv-chosen");
        if (chosen) tell(view, chosen);
    }

    function describe(data, unit, patch, layer) {
        const token = unit.tokens[patch], role = unit.roles[patch];
        const row = Math.floor(patch / unit.columns) + 1, column = patch % unit.columns + 1;
        let said = `${unit.name}, row ${row}, column ${column}: `;
        if (token < 0) return said + "dropped behind the vision tower; no visual token stands for it.";
        const members = unit.tokens.filter((other) => other === token).length;
        if (role === DOMINANT) said += `kept, visual token ${token + 1}.`;
        else {
            const anchor = unit.tokens.findIndex((other, place) => other === token && unit.roles[place] === ANCHOR);
            said += role === ANCHOR ? `visual token ${token + 1} is built around it; ` : `merged into visual token ${token + 1}, built around row ${Math.floor(anchor / unit.columns) + 1}, column ${anchor % unit.columns + 1}; `;
            said += `it stands for ${members} patches.`;
        }
        const gone = data.gone[token];
        said += gone ? ` Dropped after ${gone} layers` + (gone <= layer ? ", so not here." : ".") : " It stays to the last layer.";
        const paid = layer < 0 ? null : attentionAt(data, layer);
        if (paid && !(gone && gone < layer)) {
            const rank = 1 + paid.filter((other) => other > paid[token]).length;
            said += ` The question pays it ${paid[token].toFixed(2)} % of its attention in layer ${layer} (place ${rank} of ${paid.length}).`;
        }
        return said;
    }

    function tell(view, rect) {
        const data = dataOf(view), map = rect.closest(".dv-map"), unit = data.units[Number(map.dataset.unit)];
        const text = describe(data, unit, Number(rect.dataset.p), layerOf(view)), said = view.querySelector(".dv-said");
        if (said.textContent !== text) said.textContent = text;
    }

    function choose(view, rect) {
        view.querySelectorAll("[data-at]").forEach((one) => { delete one.dataset.at; one.classList.remove("dv-chosen", "dv-friend"); });
        view.querySelectorAll(".dv-friend").forEach((one) => one.classList.remove("dv-friend"));
        view.querySelectorAll(".dv-links").forEach((group) => group.replaceChildren());
        if (!rect) return;
        rect.dataset.at = "1";
        rect.classList.add("dv-chosen");
        const map = rect.closest(".dv-map"), unit = dataOf(view).units[Number(map.dataset.unit)];
        const patch = Number(rect.dataset.p), token = unit.tokens[patch];
        if (token >= 0 && unit.roles[patch] !== DOMINANT) {
            const anchor = unit.tokens.findIndex((other, place) => other === token && unit.roles[place] === ANCHOR);
            const links = map.querySelector(".dv-links");
            const middle = (place, axis) => (axis ? Math.floor(place / unit.columns) : place % unit.columns) * STEP + STEP / 2;
            map.querySelectorAll(".dv-p").forEach((one) => {
                const place = Number(one.dataset.p);
                if (unit.tokens[place] !== token || place === patch) return;
                one.classList.add("dv-friend");
            });
            unit.tokens.forEach((other, place) => {
                if (other !== token || place === anchor) return;
                const line = document.createElementNS(NAMESPACE, "line");
                [["x1", middle(place, 0)], ["y1", middle(place, 1)], ["x2", middle(anchor, 0)], ["y2", middle(anchor, 1)]].forEach(([name, value]) => line.setAttribute(name, value));
                links.append(line);
            });
        }
        tell(view, rect);
    }

    function stop(view) {
        clearInterval(timers.get(view));
        timers.delete(view);
        const button = view.querySelector(".dv-play");
        if (button) { button.textContent = "Play"; button.setAttribute("aria-pressed", "false"); }
    }

    function play(view) {
        if (timers.has(view)) return stop(view);
        const slider = sliderOf(view), button = view.querySelector(".dv-play");
        if (slider.value === slider.max) slider.value = 0;
        button.textContent = "Stop";
        button.setAttribute("aria-pressed", "true");
        const step = () => {
            if (!view.isConnected || slider.value === slider.max) return stop(view);
            slider.value = Number(slider.value) + 1;
            draw(view);
        };
        draw(view);
        timers.set(view, setInterval(step, 600));
    }

    document.addEventListener("input", (event) => {
        const view = viewOf(event.target);
        if (!view) return;
        if (event.target.matches(".dv-slider")) stop(view);
        if (event.target.matches(".dv-slider, .dv-modes input")) draw(view);
    });
    document.addEventListener("click", (event) => {
        const view = viewOf(event.target);
        if (!view) return;
        if (event.target.matches(".dv-play")) play(view);
        if (event.target.matches(".dv-p")) choose(view, event.target);
    });
    let pointedAt = ""; // a page that scrolls under a resting mouse is not pointed at
    document.addEventListener("pointermove", (event) => { pointedAt = `${event.clientX},${event.clientY}`; });
    document.addEventListener("pointerover", (event) => {
        if (pointedAt === `${event.clientX},${event.clientY}`) return;
        pointedAt = `${event.clientX},${event.clientY}`;
        const view = viewOf(event.target);
        if (view && event.target.matches(".dv-p") && event.pointerType !== "touch") choose(view, event.target);
    });
    document.addEventListener("focusin", (event) => {
        const view = viewOf(event.target);
        if (!view || !event.target.matches(".dv-map") || event.target.querySelector("[data-at]")) return;
        if (event.target.matches(":focus-visible")) choose(view, event.target.querySelector('[data-p="0"]'));
    });
    document.addEventListener("keydown", (event) => {
        const map = event.target, view = viewOf(map);
        if (!view || !map.matches(".dv-map")) return;
        const unit = dataOf(view).units[Number(map.dataset.unit)], columns = unit.columns, last = unit.tokens.length - 1;
        const chosen = map.querySelector("[data-at]"), at = chosen ? Number(chosen.dataset.p) : 0;
        const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: last - at };
        if (event.key === "Escape") return choose(view, null);
        if (!(event.key in steps)) return;
        event.preventDefault();
        const next = at + steps[event.key];
        if (next >= 0 && next <= last) choose(view, map.querySelector(`[data-p="${next}"]`));
    });
    const appeared = new MutationObserver((changes) => {
        for (const change of changes) for (const node of change.addedNodes) {
            if (node.nodeType !== 1) continue;
            const views = node.matches(".dv-view[data-view]") ? [node] : node.querySelectorAll(".dv-view[data-view]");
            views.forEach(draw);
        }
    });
    appeared.observe(document.body, { childList: true, subtree: true });
    document.querySelectorAll(".dv-view[data-view]").forEach(draw);
    document.documentElement.lang = "en";
}
