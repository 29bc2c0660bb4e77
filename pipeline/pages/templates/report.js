(function () {
  "use strict";
  var slider = document.getElementById("fade");
  if (!slider) { return; }
  var said = document.getElementById("faded"), pictures = document.getElementById("pictures"), bare = document.getElementById("bare");
  bare.checked = false;
  bare.closest("label").hidden = true;
  slider.closest("label").hidden = false;
  function fade() {
    pictures.style.setProperty("--heat", slider.value / 100);
    said.textContent = slider.value + " %";
  }
  slider.addEventListener("input", fade);
  fade();
}());
